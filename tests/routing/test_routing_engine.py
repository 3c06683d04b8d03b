"""The engine's tokens of a model whose tokens skip layers are those that each request has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from serving_decoders import prompts, transformers

from gossamer.routing import EarlyExit, Radial, RandomSkip
from gossamer.serving import Engine, Sampling, SparseCache, Sparsity
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import bytes_of_page

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": None,
    "bos_token_id": 1,
}  # fmt: skip


def decoder(kind: str = "Llama", **more: Any) -> Any:
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES | more)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.mul_(3)
    return model


def alone(radial: Radial, requests: list[list[int]], count: int = 20) -> list[list[int]]:
    made = [
        radial.generate(torch.tensor([each]), max_new_tokens=count, do_sample=False)[0].tolist() for each in requests
    ]
    return [tokens[len(each) :] for tokens, each in zip(made, requests, strict=True)]


def run(engine: Engine, requests: list[list[int]], count: int = 20) -> list[list[int]]:
    jobs = [engine.add(prompt, Sampling(max_tokens=count)) for prompt in requests]
    while engine.busy:
        engine.step()
    assert all(pages.free == pages.count for pages in engine.store.pages.values())
    return [job.tokens for job in jobs]


def restless(radial: Radial) -> Radial:
    """A router that sends tokens on many ways."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in radial.policy.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3 if "embed" in name else 1.0)
            else:
                parameter.normal_(0, 1.0)
    return radial


MODELS = {
    "random, sparse": lambda: Radial(decoder(), policy=RandomSkip(4, 64, rate=0.5, seed=3)),
    "random, late keys": lambda: Radial(decoder(), kv="propagate", policy=RandomSkip(4, 64, rate=0.5, seed=4)),
    "random branches of windows, known keys": lambda: Radial(
        decoder("Mistral", sliding_window=32), kv="project", units="branch", policy=RandomSkip(8, 64, rate=0.5, seed=5)
    ),
    "early exits, propagated": lambda: Radial(
        decoder(), kv="propagate", policy=EarlyExit(4, 64, threshold=0.8, measure="saturation", first=1)
    ),
    "jumps": lambda: restless(Radial(decoder())),
    "hops": lambda: restless(Radial(decoder(), mode="free", hops=3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_ragged_batches_are_solo_runs(name):
    """With prompts in chunks, and a request that begins when another has ended."""
    radial, requests = MODELS[name]().eval(), prompts(5, 70, 1, 129)
    expected = alone(radial, requests)
    with torch.no_grad():
        radial(torch.tensor(requests[-1:]))
    assert len(set(radial.run.ran)) > 1 and 0 < radial.run.depth < len(radial.units)  # some were skipped
    assert run(Engine(radial, end=[], max_requests=3, chunk=48), requests) == expected


def test_who_gives_pages_back_goes_on_with_the_same_tokens():
    """Heads that stream need as many pages as the others: a layer that few tokens take keeps the first of them."""
    radial = Radial(decoder(), policy=RandomSkip(4, 64, rate=0.5, seed=3)).eval()
    sparsity, requests = Sparsity(static=0.5, sink=32, local=64, token_budget=192), prompts(180, 170, 160)
    expected = run(Engine(radial, sparsity=sparsity, end=[], chunk=512), requests, 60)
    geometry = Geometry.of(radial.config)
    sizes = bytes_of_page(geometry, sparsity, "float32", sparsity.parts(geometry))
    engine = Engine(
        radial, sparsity=sparsity, end=[], memory=6 * sum(sizes.values()), max_length=320, max_requests=3, chunk=100
    )
    assert [pages.count for pages in engine.store.pages.values()] == [6] * len(sizes)
    jobs = [engine.add(prompt, Sampling(max_tokens=60)) for prompt in requests]
    while engine.busy:
        engine.step()
    assert [job.tokens for job in jobs] == expected
    assert [job.restarts for job in jobs] == [0, 1, 1]
    every = 2 * 4 * sum(prompt + at for prompt in (180, 170, 160) for at in range(1, 60))
    assert 0 < engine.tally.decode_keys < every / 3  # half of the tokens look at half of the keys, and some twice


def test_an_engine_has_the_slots_of_its_model():
    radial = Radial(decoder(), mode="free").eval()
    engine, requests = Engine(radial, end=[], max_length=100), prompts(50, 9)
    assert len(engine.store.pools) == 16
    assert run(engine, requests) == run(Engine(radial.model, end=[]), requests)  # a new router is the network in order


def test_a_cache_says_that_a_pass_ended_in_its_middle(monkeypatch):
    """Slots that lack tokens would look as if these had skipped them."""
    radial, ids = Radial(decoder(), policy=RandomSkip(4, 64, rate=0.5, seed=3)).eval(), torch.tensor(prompts(20))
    cache, expected = SparseCache(radial.config), radial.generate(ids, max_new_tokens=5, do_sample=False)
    with torch.no_grad(), pytest.raises(ValueError, match="mask"):
        radial(ids, attention_mask=torch.ones(1, 19), past_key_values=cache)  # nothing has begun

    def stopped(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(radial.model.model.layers[2].mlp, "forward", stopped)
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            radial(ids, past_key_values=cache)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"the last one ended in its middle: reset\(\) the cache"):
        radial(ids, past_key_values=cache)
    cache.reset()
    assert torch.equal(radial.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False), expected)


def test_layers_with_a_window_refuse_to_be_skipped():
    """The request stays, and the engine can go on without it."""
    radial = Radial(decoder("Mistral", sliding_window=32), policy=RandomSkip(4, 64, rate=0.5, seed=3)).eval()
    engine = Engine(radial, end=[])
    job = engine.add(prompts(30)[0], Sampling(max_tokens=20))
    with pytest.raises(ValueError, match="has a window of 32 tokens by their positions, and lacks tokens"):
        engine.step()
    engine.stop(job)
    assert not engine.busy and all(pages.free == pages.count for pages in engine.store.pages.values())


@pytest.mark.parametrize("name", ["random, late keys", "jumps"])
def test_beams_have_the_probabilities_of_their_texts(name):
    """Rows that a beam search copies and drops, with all that their slots hold and their policies remember."""
    radial, (prompt,) = MODELS[name]().eval(), prompts(70)
    made = radial.generate(
        torch.tensor([prompt]), max_new_tokens=24, num_beams=4, num_return_sequences=4, do_sample=False,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert len(made.beam_indices.unique()) == 4
    with torch.no_grad():
        logs = radial(made.sequences).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    expected = logs.gather(2, made.sequences[:, len(prompt) :, None])[:, :, 0]
    found = radial.model.compute_transition_scores(made.sequences, made.scores, made.beam_indices)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)

"""A routed model: equal to its base where everything runs, to a loop over tokens where not, however it is run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from small_decoders import FAMILIES, SIZES, WHOLE, WINDOWED, ids, made
from torch import Tensor, nn

from gossamer.routing.export import drop
from gossamer.routing.lm import RadialConfig, RadialLM
from gossamer.routing.policies.fixed import RandomSkip, Static
from gossamer.routing.policies.policy import Choice, Policy, Tokens, Walk
from gossamer.routing.policies.recursion import Recursions
from gossamer.routing.radial import Radial
from gossamer.serving import SparseCache

transformers: Any = pytest.importorskip("transformers")


@torch.no_grad()
def by_hand(model: Any, tokens: Tensor, runs: Tensor, kv: str) -> Tensor:
    """Logits of one text, token after token and layer after layer; runs: bool[layers, tokens]."""
    base, config = model.model, model.config
    heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    rope = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    keys: list[list[tuple[Tensor, Tensor]]] = [[] for _ in base.layers]
    logits = []
    for at, token in enumerate(tokens):
        h = base.embed_tokens(token)[None, None]
        cos, sin = base.rotary_emb(h, position_ids=torch.tensor([[at]]))
        for number, layer in enumerate(base.layers):
            attention, x = layer.self_attn, layer.input_layernorm(h)
            width = attention.head_dim
            q, k, v = (
                linear(x).view(1, 1, -1, width).transpose(1, 2)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = rope(q, k, cos, sin)
            if runs[number, at] or kv != "sparse":
                keys[number].append((k[0, :, 0], v[0, :, 0]))
            if not runs[number, at]:
                continue
            every = torch.stack([k for k, _ in keys[number]], 1).repeat_interleave(groups, 0)
            values = torch.stack([v for _, v in keys[number]], 1).repeat_interleave(groups, 0)
            weights = (q[0] @ every.mT / width**0.5).softmax(-1)
            h = h + attention.o_proj((weights @ values).transpose(0, 1).reshape(1, 1, heads * width))
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        logits.append(model.lm_head(base.norm(h))[0, 0])
    return torch.stack(logits)


def runs_of(radial: Radial, texts: list[Tensor]) -> Tensor:
    """Who runs what under a RandomSkip, which is a matter of the tokens and their places alone."""
    tokens = Tokens.of([len(text) for text in texts])
    h = radial.get_input_embeddings()(torch.cat(texts)).detach()
    walk = radial.policy.begin(h, tokens)
    rows = [walk.enter(unit, h).rows for unit in range(radial.policy.units)]
    whole = torch.ones(len(tokens), dtype=torch.bool)
    return torch.stack([whole if row is None else row | (tokens.position < radial.sink) for row in rows])


@pytest.mark.parametrize("units", ["block", "branch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_in_order_is_the_base_model(family: str, units: str) -> None:
    model, tokens = made(family), ids(2, 9)
    if family in WHOLE and units == "branch":
        with pytest.raises(ValueError, match=type(model.model.layers[0]).__name__ if family != "opt" else "OPT"):
            Radial(model, "sequential", units=units)
        return
    radial = Radial(model, "sequential", units=units).eval()
    expected = model(tokens).logits
    torch.testing.assert_close(radial(tokens).logits, expected, rtol=0, atol=0)  # gradients on: the same operations
    with torch.no_grad():
        torch.testing.assert_close(radial(tokens).logits, expected, rtol=1e-4, atol=1e-5)
        cache = SparseCache(model.config)
        some = [radial(tokens[:, a:b], past_key_values=cache).logits for a, b in ((0, 5), (5, 6), (6, 7), (7, 9))]
    torch.testing.assert_close(torch.cat(some, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv", ["sparse", "project", "propagate"])
def test_pages_give_the_bits_of_the_base_model_on_pages(kv: str) -> None:
    model, tokens = made(), ids(1, 70)
    radial = Radial(model, "skip", kv)
    model.set_attn_implementation("gossamer")
    with torch.no_grad():
        one, other = SparseCache(model.config), SparseCache(model.config)
        for part in tokens.split([66, 1, 1, 2], 1):
            expected = model(part, past_key_values=one).logits
            assert torch.equal(radial(part, past_key_values=other).logits, expected)


def test_first_tokens_run_everything() -> None:
    radial = Radial(made(), policy=Static(4, 64, keep=[0]), sink=2).eval()
    tokens, mask = ids(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[1, :3] = 0  # padding on the left is no token
    for grad in (torch.no_grad(), torch.enable_grad()):
        with grad:
            radial(tokens, attention_mask=mask)
        assert radial.run.ran == [9, 4, 4, 4]
    cache = SparseCache(radial.geometry)
    with torch.no_grad():
        for part in tokens[:1].split([1, 2, 3], 1):
            radial(part, past_key_values=cache)
    assert radial.run.ran == [3, 0, 0, 0]
    assert Radial(made(), "free", sink=3).sink == 0


@pytest.mark.parametrize("kv", ["sparse", "project", "propagate"])
@pytest.mark.parametrize("chunks", [(23,), (1,) * 23, (7, 1, 1, 9, 5)], ids=len)
def test_random_routes_equal_a_loop_over_tokens(kv: str, chunks: tuple[int, ...]) -> None:
    model, tokens = made(), ids(1, 23)
    radial = Radial(model, kv=kv, policy=RandomSkip(4, 64, rate=0.5, seed=1)).eval()
    expected = by_hand(model, tokens[0], runs_of(radial, [tokens[0]]), kv)
    cache = SparseCache(model.config)
    with torch.no_grad():
        found = torch.cat([radial(part, past_key_values=cache).logits[0] for part in tokens.split(chunks, 1)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kv", ["sparse", "project", "propagate"])
def test_texts_of_a_batch_are_apart(kv: str, side: str) -> None:
    model, lengths = made(), (9, 4, 6)
    radial = Radial(model, kv=kv, policy=RandomSkip(4, 64, rate=0.4, seed=2)).eval()
    tokens, mask = ids(3, 9), torch.zeros(3, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, slice(9 - length, 9) if side == "left" else slice(0, length)] = 1
    tokens = torch.where(mask.bool(), tokens, 0)
    runs = runs_of(radial, [tokens[row][mask[row].bool()] for row in range(3)]).split(lengths, 1)
    expected = torch.cat([by_hand(model, tokens[row][mask[row].bool()], runs[row], kv) for row in range(3)])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        paged = radial(tokens, attention_mask=mask, position_ids=places).logits[mask.bool()]
    trained = radial(tokens, attention_mask=mask, position_ids=places).logits[mask.bool()]
    torch.testing.assert_close(paged, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WINDOWED))
@pytest.mark.parametrize("units", ["block", "branch"])
@pytest.mark.parametrize("kv", ["sparse", "project"])
def test_training_and_inference_give_the_same_numbers(family: str, units: str, kv: str) -> None:
    if family in WHOLE and units == "branch":
        pytest.skip("its branches are no modules")
    model = made(family)
    count = 4 if units == "block" else 8
    radial = Radial(model, kv=kv, units=units, policy=RandomSkip(count, 64, rate=0.5, seed=3), adapter=3).eval()
    for parameter in radial.adapters.parameters():
        nn.init.normal_(parameter)
    tokens = ids(2, 11)
    trained = radial(tokens).logits
    ran = radial.run.ran
    with torch.no_grad():
        paged = radial(tokens).logits
    assert radial.run.ran == ran and 0 < sum(ran) < 22 * count
    torch.testing.assert_close(paged, trained, rtol=1e-3, atol=1e-4)


def test_one_key_for_all_layers_is_the_base_model_in_a_prompt_and_not_in_decoding() -> None:
    """What the docs say of the experiment: a prompt is read in lock-step, decoding meets the keys of the last layer."""
    model, tokens = made(), ids(2, 12)
    radial = Radial(model, "sequential", "global_last").eval()
    expected = model(tokens).logits
    with torch.no_grad():
        torch.testing.assert_close(radial(tokens).logits, expected, rtol=1e-4, atol=1e-4)
        cache = SparseCache(radial.geometry)
        first = radial(tokens[:, :8], past_key_values=cache).logits
        torch.testing.assert_close(first, expected[:, :8], rtol=1e-4, atol=1e-4)
        decoded = radial(tokens[:, 8:9], past_key_values=cache).logits
        assert (decoded - expected[:, 8:9]).abs().max() > 0.1
        again = SparseCache(radial.geometry)
        radial(tokens[:, :8], past_key_values=again)
        radial(tokens[:, 3:5], past_key_values=again)
        again.crop(-2)  # what was taken back is forgotten
        torch.testing.assert_close(radial(tokens[:, 8:9], past_key_values=again).logits, decoded)
        skipping = Radial(model, kv="global_last", policy=RandomSkip(4, 64, rate=0.5, seed=0)).eval()
        assert skipping.generate(tokens, max_new_tokens=5).shape == (2, 17)
    with pytest.raises(ValueError, match=r"global_last.*for inference"):
        radial(tokens)


def test_windows_that_count_places_refuse_layers_that_lack_tokens() -> None:
    radial = Radial(made("gemma2"), policy=RandomSkip(4, 64, rate=0.5, seed=0)).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="window"):
        radial(ids(1, 9))
    whole = Radial(made("gemma2"), kv="project", policy=RandomSkip(4, 64, rate=0.5, seed=0)).eval()
    with torch.no_grad():
        paged = whole(ids(1, 9)).logits
    torch.testing.assert_close(paged, whole(ids(1, 9)).logits, rtol=1e-3, atol=1e-4)


def test_layers_left_out_are_left_out() -> None:
    model = made()
    radial = Radial(model, policy=Static(4, 64, keep=[0, 3]), sink=0).eval()
    shallow = copy.deepcopy(model)
    del shallow.model.layers[1:3]
    shallow.config.num_hidden_layers = 2
    with torch.no_grad():
        torch.testing.assert_close(
            radial(ids(2, 8)).logits, shallow(ids(2, 8), use_cache=False).logits, rtol=1e-4, atol=1e-5
        )
    assert radial.run.ran == [16, 0, 0, 16]


def test_generation_is_that_of_the_base_model_and_of_each_text_alone() -> None:
    model = made()
    tokens = ids(2, 7)
    expected = model.generate(tokens, max_new_tokens=12, do_sample=False)
    assert torch.equal(Radial(model).eval().generate(tokens, max_new_tokens=12, do_sample=False), expected)
    radial = Radial(model, policy=Parity(4, 64)).eval()
    together = radial.generate(tokens, max_new_tokens=12, do_sample=False)
    for row in range(2):
        alone = radial.generate(tokens[row : row + 1], max_new_tokens=12, do_sample=False)
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together, expected)


class Parity(Policy):
    """Odd units are run at odd places."""

    def begin(self, h: Tensor, tokens: Tokens) -> Walk:
        class Odd(Walk):
            def enter(self, unit: int, h: Tensor) -> Choice:
                return Choice(None if unit % 2 == 0 else tokens.position % 2 == 1)

        return Odd()


def test_the_model_is_itself_again_whatever_happens() -> None:
    model = made()
    own = model.model.layers[1]
    own.forward = own.forward  # as tools that wrap layers do
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    kept = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    radial = Radial(model.train(), adapter=2)
    assert all(module.training for module in model.modules())
    radial(ids(2, 5), labels=ids(2, 5)).loss.backward()
    with pytest.raises(IndexError), torch.no_grad():
        radial(torch.full((1, 3), 999))
    with pytest.raises(ValueError, match="SparseCache"), torch.no_grad():
        radial(ids(1, 3), past_key_values=transformers.DynamicCache())
    model.eval()
    with torch.no_grad():
        radial.eval()(ids(1, 3))
    assert model.config._attn_implementation == "sdpa"
    for name, module in model.named_modules():
        assert module.__dict__.get("forward") == before[name].get("forward"), name
    for name, value in model.state_dict().items():
        assert value.data_ptr() == kept[name][0] and torch.equal(value, kept[name][1])


@pytest.mark.parametrize("make", [
    lambda base: Radial(base, adapter=2), lambda base: drop(base, [1]),
    lambda base: RadialLM(RadialConfig(vocabulary=60, width=32, layers=2, hops=3, heads=2)),
], ids=["radial", "dropped", "from scratch"])  # fmt: skip
def test_models_made_in_inference_mode_can_learn(make: Callable[[nn.Module], nn.Module]) -> None:
    base = made()
    with torch.inference_mode():
        model = make(base)
        model(ids(1, 6))
    model.train()(ids(1, 6), labels=ids(1, 6)).loss.backward()


def test_copies_and_inference_mode() -> None:
    radial = Radial(made(), policy=RandomSkip(4, 64, rate=0.5, seed=0)).eval()
    with torch.inference_mode():
        first = radial(ids(1, 6)).logits
    other = copy.deepcopy(radial)
    with torch.no_grad():
        assert torch.equal(other(ids(1, 6)).logits, first.clone())
        other.model.model.layers[0].mlp.down_proj.weight.mul_(2)
        assert not torch.equal(other(ids(1, 6)).logits, first.clone())
        assert torch.equal(radial(ids(1, 6)).logits, first.clone())
    radial.train()(ids(1, 6), labels=ids(1, 6)).loss.backward()


def test_threads_have_it_in_turns() -> None:
    radial = Radial(made(), policy=RandomSkip(4, 64, rate=0.5, seed=0)).eval()
    texts = [ids(1, length) for length in (10, 33, 60, 7)] * 4

    def run(text: Tensor) -> Tensor:
        with torch.no_grad():
            return radial(text).logits

    alone = [run(text) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        assert all(map(torch.equal, threads.map(run, texts), alone))


def test_from_scratch_hops_begin_as_a_pass_through_all_layers() -> None:
    model = RadialLM(RadialConfig(vocabulary=60, width=64, layers=3, hops=5, heads=4)).eval()
    tokens = ids(2, 10)
    expected = model.model(tokens).logits
    torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)
    assert sum(model.run.ran) == 3 * 20


@pytest.mark.parametrize("policy", [None, Recursions(3, 64, shares=(1.0, 0.8, 0.5, 0.3))], ids=["hops", "recursions"])
def test_hops_with_reuse_are_alike_in_training_prompts_and_decoding(policy: Policy | None) -> None:
    hops = 6 if policy is None else 4
    model = RadialLM(RadialConfig(vocabulary=60, width=64, layers=3, hops=hops, heads=4), policy=policy).eval()
    for parameter in model.policy.parameters():
        nn.init.normal_(parameter)
    for parameter in model.model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    tokens = ids(2, 12)
    trained = model(tokens).logits
    assert min(model.run.ran) < 24 and len(set(model.run.ran)) > 2  # tokens go apart
    cache = SparseCache(model.geometry)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, trained, rtol=1e-3, atol=1e-4)
        parts = [model(part, past_key_values=cache).logits for part in tokens.split([5, 1, 1, 5], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), trained, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "random"}, "mode must be one of sequential, skip, free, got 'random'"),
        ({"kv": "none"}, "kv must be one of sparse, project, propagate, global_last, got 'none'"),
        ({"units": "head"}, "units must be one of block, branch, got 'head'"),
        ({"adapter": -1}, "adapter must be a rank of at least 0, got -1"),
        ({"sink": -1}, "sink must be a number of tokens of at least 0, got -1"),
        ({"hops": 2}, 'hops=2 is for mode="free"'),
        ({"policy": Static(3, 64, keep=[0])}, "policy decides about 3 units of width 64, expected 4 of width 64"),
    ],
)
def test_refusals(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Radial(made(), **arguments)
    with pytest.raises(ValueError, match="routed already"):
        Radial(Radial(made()))
    with pytest.raises(ValueError, match="Linear"):
        Radial(nn.Linear(3, 3))
    bert = transformers.BertConfig(**{key: value for key, value in SIZES.items() if key != "num_key_value_heads"})
    with pytest.raises(ValueError, match="no causal decoder"):
        Radial(transformers.BertForMaskedLM(bert))


def padded() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1] = 0
    return ids(2, 6), mask


def test_what_users_do_around_it() -> None:
    """Half precision, autocast, checkpointed gradients, compiled wrappers, embeddings for ids, rows of padding."""
    model = made()
    radial = Radial(model, policy=RandomSkip(4, 64, rate=0.4, seed=1)).eval()
    tokens, mask = padded()
    with torch.no_grad():
        expected = radial(tokens, attention_mask=mask).logits
        assert expected[0].isfinite().all()
        embedded = model.get_input_embeddings()(tokens[:1])
        kept = embedded.clone()
        torch.testing.assert_close(radial(inputs_embeds=embedded).logits, expected[:1], rtol=1e-4, atol=1e-5)
        assert torch.equal(embedded, kept)
        compiled = torch.compile(radial, backend="eager")
        assert torch.equal(compiled(tokens, attention_mask=mask).logits, expected)
        assert torch.equal(radial(tokens, attention_mask=mask, return_dict=False)[0], expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert radial(tokens).logits.dtype == torch.bfloat16
    loss = radial(tokens, labels=tokens).loss
    loss.backward()
    first = model.model.layers[1].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.train().gradient_checkpointing_enable()
    radial(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(model.model.layers[1].mlp.up_proj.weight.grad, first)
    half = Radial(made().to(torch.bfloat16), policy=radial.policy, adapter=2).eval()
    assert half.generate(tokens[:1], max_new_tokens=4).shape == (1, 10)
    assert half.generate(tokens, num_beams=2, max_new_tokens=4).shape == (2, 10)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("hops", [1, 2])
def test_a_copy_made_during_a_pass_is_the_model_itself(copied, hops):
    """With weights of its own, and nobody's routes: as an average in another thread makes it."""
    model, found = made("llama"), []
    radial = Radial(model, hops=hops, mode="free" if hops > 1 else "skip").eval()
    tokens = ids(1, 9)
    model.model.norm.register_forward_pre_hook(lambda *_: found.append(None if found else copied(model.model.layers)))
    with torch.no_grad():
        expected = model(tokens).logits
        found.clear()
        radial(tokens)
        (layers,) = (each for each in found if each is not None)
        model.model.norm._forward_pre_hooks.clear()
        theirs, model.model.layers = model.model.layers, layers
        torch.testing.assert_close(model(tokens).logits, expected)
        layers[0].mlp.down_proj.weight.zero_()
        assert (model(tokens).logits - expected).abs().max() > 0.1
        model.model.layers = theirs
        assert torch.equal(model(tokens).logits, expected)

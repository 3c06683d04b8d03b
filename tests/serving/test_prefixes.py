"""Prompts that begin as earlier texts did: the same tokens as from nothing, and no page lost, whoever needs them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from serving_decoders import FAMILIES, decoder, prompts

from gossamer.serving import Engine, Sampling, Sparsity
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import bytes_of_page

pytestmark = pytest.mark.filterwarnings("ignore")

SPARSITIES = {
    "dense": Sparsity(),
    "streaming": Sparsity(static=0.5, sink=64, local=64),
    "chosen": Sparsity(token_budget=192),
    "both": Sparsity(token_budget=192, static=0.5, sink=64, local=64),
}


def finished(engine: Engine, requests: list[list[int]], count: int = 5) -> list[list[int]]:
    """One after the other, so that each can find those before it."""
    tokens = []
    for prompt in requests:
        job = engine.add(prompt, Sampling(max_tokens=count))
        while engine.busy:
            engine.step()
        tokens.append(job.tokens)
    return tokens


def pages_are_free(engine: Engine) -> bool:
    engine.prefixes.clear()
    return all(pages.free == pages.count for pages in engine.store.pages.values())


def family_of(shared: int, *ends: int) -> list[list[int]]:
    """Prompts with the same `shared` tokens and then others."""
    (head, *tails) = prompts(shared, *ends)
    return [head + tail for tail in tails]


@pytest.mark.parametrize(("kind", "chunk"), [*((kind, 32) for kind in SPARSITIES), ("both", 512)])
def test_what_was_known_changes_no_token(kind: str, chunk: int) -> None:
    model, sparsity = decoder("llama"), SPARSITIES[kind]
    requests = family_of(200, 3, 70, 1, 3)
    requests = [*requests, requests[1], requests[0][:150], requests[0][:199]]
    cold = finished(Engine(model, sparsity=sparsity, end=[], chunk=chunk), requests)
    engine = Engine(model, sparsity=sparsity, end=[], chunk=chunk, prefixes=8)
    assert finished(engine, requests) == cold
    assert engine.prefixes.queries == sum(map(len, requests)) and engine.prefixes.hits > 0
    assert pages_are_free(engine)


def test_dense_texts_are_used_up_to_where_they_part() -> None:
    engine = Engine(decoder("llama"), end=[], prefixes=8)
    first, second, third = family_of(150, 5, 40, 9)
    jobs = [engine.add(prompt, Sampling(max_tokens=4)) for prompt in (first, second, second, third)]
    for job in jobs:
        while job.finished is None:
            engine.step()
    assert [job.cached for job in jobs][:1] == [0]
    again = engine.add(first, Sampling(max_tokens=4))
    while engine.busy:
        engine.step()
    assert again.cached == len(first) - 1  # the last token is read again: its logits are wanted
    assert again.tokens == jobs[0].tokens


def test_rings_are_used_at_their_ends_only() -> None:
    engine = Engine(decoder("llama"), sparsity=SPARSITIES["streaming"], end=[], prefixes=8)
    (longer,) = family_of(150, 40)
    base = longer[:150]
    other = [*base[:140], *prompts(20)[0]]
    cached = []
    for prompt in (base, longer, other, base):
        job = engine.add(prompt, Sampling(max_tokens=4))
        while engine.busy:
            engine.step()
        cached.append(job.cached)
    assert cached == [0, 150, 0, 0]  # a prompt that is known whole has no token left to read: it begins anew


@pytest.mark.parametrize("sparsity", [Sparsity(), Sparsity(token_budget=192)], ids=["dense", "chosen"])
def test_known_texts_give_way_and_restarts_stay_exact(sparsity: Sparsity) -> None:
    """Pages for little more than two of three requests that grow, all with a known beginning."""
    model, requests = decoder("llama"), family_of(130, 50, 40, 30)
    expected = finished(Engine(model, sparsity=sparsity, end=[]), requests, 40)
    geometry = Geometry.of(model.config)
    size = sum(bytes_of_page(geometry, sparsity, "float32", sparsity.parts(geometry)).values())
    engine = Engine(
        model, sparsity=sparsity, end=[], memory=7 * size, max_length=320, max_requests=3, chunk=128, prefixes=8
    )
    kept = 0
    for _ in range(2):
        jobs = [engine.add(prompt, Sampling(max_tokens=40)) for prompt in requests]
        while engine.busy:
            engine.step()
        assert [job.tokens for job in jobs] == expected
        assert any(job.restarts for job in jobs)
        kept += sum(job.cached for job in jobs)
    assert 0 < kept < engine.prefixes.hits  # some who had found their beginning gave it back
    assert pages_are_free(engine)


def test_texts_that_were_stopped_or_failed_leave_only_whole_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (prompt, longer) = decoder("llama"), family_of(200, 30, 50)
    expected = finished(Engine(model, end=[]), [prompt, longer])
    engine = Engine(model, end=[], chunk=64, prefixes=8)
    stopped = engine.add(prompt, Sampling(max_tokens=12))
    engine.step()
    engine.stop(stopped)
    assert finished(engine, [prompt]) == expected[:1] and engine.prefixes.hits == 64
    engine.add(longer, Sampling(max_tokens=12))
    layer = model.model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *args, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    while engine.busy:
        engine.step()
    assert finished(engine, [longer]) == expected[1:] and pages_are_free(engine)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family: str) -> None:
    model, requests = decoder(family), family_of(140, 8, 20)
    engine = Engine(model, end=[], prefixes=8)
    assert finished(engine, requests, 6) == finished(Engine(model, end=[]), requests, 6)
    assert pages_are_free(engine)


def test_texts_of_another_budget_are_no_beginning() -> None:
    """What was decoded on a budget is not what a request without one would have computed."""
    model, (prompt,) = decoder("llama"), prompts(300)
    engine = Engine(model, sparsity=Sparsity(token_budget=192), end=[], prefixes=8)

    def made(tokens: list[int], token_budget: int | None) -> tuple[list[int], int]:
        job = engine.add(tokens, Sampling(max_tokens=12), token_budget=token_budget)
        while engine.busy:
            engine.step()
        return job.tokens, job.cached

    first, cached = made(prompt, None)
    assert cached == 0
    longer = [*prompt, *first, 5]
    dense = finished(Engine(model, end=[]), [longer], 12)[0]
    assert made(longer, 0) == (dense, 0)
    assert made(longer, 0) == (dense, len(longer) - 1)
    assert made(longer, None)[1] == len(longer) - 2 and made(longer, 256)[1] == 0
    assert pages_are_free(engine)


def _step(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _load(model: torch.nn.Module) -> None:
    model.load_state_dict({name: x + 0.1 * torch.randn_like(x) for name, x in model.state_dict().items()})


def _replace(model: torch.nn.Module) -> None:
    layer = model.get_submodule("model.layers.0.self_attn.k_proj")
    layer.weight = torch.nn.Parameter(layer.weight.flip(0))


@pytest.mark.parametrize("change", [_step, _load, _replace])
def test_other_weights_forget_what_was_kept(change: Callable[[torch.nn.Module], None]) -> None:
    """Also what they met in the middle: a prompt that is half read, and a text that is half written."""
    model = copy.deepcopy(decoder("llama"))  # others have that one too
    engine = Engine(model, end=[], prefixes=8, chunk=64)
    first, second = family_of(150, 5, 40)
    finished(engine, [first])
    writing, reading = (engine.add(prompt, Sampling(max_tokens=4)) for prompt in (second, *prompts(300)))
    for _ in range(3):
        engine.step()
    assert writing.cached and len(writing.tokens) == 3 and 0 < reading.done < 200 and engine.prefixes.known
    change(model)
    while engine.busy:
        engine.step()
    assert not engine.prefixes.known  # neither of the two
    assert finished(engine, [first, second]) == finished(Engine(model, end=[]), [first, second])
    assert len(engine.prefixes.known) > 1 and pages_are_free(engine)


def test_weights_that_count_no_writes_are_never_what_they_were() -> None:
    """Tensors of inference mode have no version: `load_state_dict` leaves no trace in them."""
    first, *_ = family_of(150, 5, 40)
    with torch.inference_mode():
        model = copy.deepcopy(decoder("llama"))
    engine = Engine(model, end=[], prefixes=8)
    finished(engine, [first])
    with torch.inference_mode():
        _load(model)
    assert finished(engine, [first]) == finished(Engine(model, end=[]), [first])

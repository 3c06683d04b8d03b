"""The engine's tokens are those that each request has alone, whoever else is there, however prompts are cut."""

from __future__ import annotations

import random

import pytest
import torch
from serving_decoders import FAMILIES, VOCABULARY, decoder, greedy, prompts

from gossamer.serving import Engine, Sampling, Sparsity
from gossamer.serving.geometry import Geometry
from gossamer.serving.paging.store import bytes_of_page, most_pages

pytestmark = pytest.mark.filterwarnings("ignore")


def run(engine: Engine, requests: list[list[int]], count: int = 30) -> list[list[int]]:
    jobs = [engine.add(prompt, Sampling(max_tokens=count)) for prompt in requests]
    while engine.busy:
        engine.step()
    assert all(pages.free == pages.count for pages in engine.store.pages.values())
    assert {job.finished for job in jobs} == {"length"}
    return [job.tokens for job in jobs]


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_are_solo_runs_of_transformers(family):
    model, requests = decoder(family), prompts(5, 70, 1, 129)
    expected = [greedy(model, prompt, 12) for prompt in requests]
    assert run(Engine(model, end=[], max_requests=3, chunk=48), requests, 12) == expected


@pytest.mark.parametrize("chunk", [1, 33, 64, 1000])
def test_how_a_prompt_is_cut_does_not_matter(chunk):
    """Not even where its last token comes alone, and would be taken for one that decodes and chooses pages."""
    model, requests = decoder("llama"), prompts(321)
    sparse = Sparsity(static=0.5, sink=32, local=64, token_budget=192, pattern=None)
    assert run(Engine(model, sparsity=sparse, end=[], chunk=chunk), requests, 12) == run(
        Engine(model, sparsity=sparse, end=[], chunk=512), requests, 12
    )


@pytest.mark.parametrize("sparsity", [Sparsity(), Sparsity(token_budget=192, static=0.5, sink=64, local=64)])
def test_who_gives_pages_back_goes_on_with_the_same_tokens(sparsity):
    """Six pages hold two requests of three, until they grow; who has no room waits, and takes none from the others."""
    model, requests = decoder("llama"), prompts(180, 170, 160)
    expected = run(Engine(model, sparsity=sparsity, end=[]), requests, 60)
    geometry = Geometry.of(model.config)
    sizes = bytes_of_page(geometry, sparsity, "float32", sparsity.parts(geometry))
    counts = {view: 6 if view.window is None else 3 * most_pages(view, 320, 128, 64) for view in sizes}
    memory = sum(size * counts[view] for view, size in sizes.items())
    engine = Engine(model, sparsity=sparsity, end=[], memory=memory, max_length=320, max_requests=3, chunk=128)
    jobs = [engine.add(prompt, Sampling(max_tokens=60)) for prompt in requests]
    while engine.busy:
        engine.step()
    assert [job.tokens for job in jobs] == expected
    assert [job.restarts for job in jobs] == [0, 1, 1]


@pytest.mark.parametrize("at", [1, 2, 20])
def test_a_pass_that_fails_or_is_stopped_leaves_no_trace(at, monkeypatch):
    """Pages that were taken for it hold no keys; the requests begin again and have the same tokens."""
    model, requests = decoder("llama"), prompts(200, 30)
    expected = run(Engine(model, end=[]), requests)
    engine, calls, norm = Engine(model, end=[], chunk=100), [], model.model.norm.forward

    def stopped(*args):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return norm(*args)

    monkeypatch.setattr(model.model.norm, "forward", stopped)
    jobs = [engine.add(prompt, Sampling(max_tokens=30)) for prompt in requests]
    interrupted = 0
    while engine.busy:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupted += 1
            assert model.config._attn_implementation != "gossamer"
            assert all(pages.free == pages.count for pages in engine.store.pages.values()) or engine.running
    assert interrupted == 1 and [job.tokens for job in jobs] == expected


def test_pages_of_others_leave_no_trace():
    """Pages that were poisoned before they were given back serve the next request as new ones do."""
    model, requests = decoder("llama"), prompts(400)
    sparse = Sparsity(token_budget=192, score="extremes", stretch=16)
    engine = Engine(model, sparsity=sparse, end=[], max_length=600, max_requests=1)
    expected = run(engine, requests)
    for pools in engine.store.pools:
        for pool in pools:
            for each in (pool.keys, pool.values, pool.extremes):
                each.fill_(torch.nan)
    assert run(engine, requests) == expected


def test_requests_come_and_go_at_any_time():
    """Joins and leaves in the middle of what others chose; nobody notices."""
    model, draw = decoder("llama"), random.Random(0)
    sparse = Sparsity(token_budget=192, interval=4)
    requests = prompts(*(draw.randrange(1, 500) for _ in range(8)))
    alone = [run(Engine(model, sparsity=sparse, end=[]), [prompt], 20)[0] for prompt in requests]
    engine = Engine(model, sparsity=sparse, end=[], max_requests=4, chunk=100)
    left, jobs, aborted = list(requests), [], []
    while left or engine.busy:
        if left and draw.random() < 0.3:
            jobs.append(engine.add(left.pop(0), Sampling(max_tokens=20)))
        if draw.random() < 0.05:
            aborted.append(engine.add(prompts(100)[0], Sampling(max_tokens=20)))
        if aborted and draw.random() < 0.2:
            engine.stop(aborted.pop())
        engine.step()
    assert [job.tokens for job in jobs] == alone
    assert all(pages.free == pages.count for pages in engine.store.pages.values())


def test_pages_are_chosen_and_counted():
    model = decoder("llama")
    engine = Engine(model, sparsity=Sparsity(token_budget=192, interval=4), end=[])
    run(engine, prompts(640), 33)
    tally, heads = engine.tally, 2 * 3
    # 32 tokens decode, at lengths 641 to 672: all in the eleventh page, chosen anew at every fourth.
    assert tally.decode_keys == heads * sum(range(641, 673))
    assert tally.decode_read == heads * sum(2 * 64 + length - 640 for length in range(641, 673))
    assert tally.sparse_steps == 3 * 32 and tally.chosen == 3 * 8 and tally.scored == heads * 8 * 11
    dense = Engine(model, end=[])
    run(dense, prompts(640), 33)
    assert dense.tally.decode_read == dense.tally.decode_keys == tally.decode_keys and dense.tally.chosen == 0


def test_below_the_budget_the_bits_are_those_of_dense_attention():
    model, requests = decoder("llama"), prompts(100, 150)
    logits = []
    for sparsity in (Sparsity(), Sparsity(token_budget=192, max_error=0.01), Sparsity(token_budget=192, certify=True)):
        engine = Engine(model, sparsity=sparsity, end=[])
        jobs = [engine.add(prompt, Sampling(max_tokens=30, logprobs=5)) for prompt in requests]
        while engine.busy:
            engine.step()
        assert engine.tally.sparse_steps == 0
        logits.append([job.choices for job in jobs])
    assert logits[0] == logits[1] == logits[2]


def test_an_end_token_ends_and_others_do_not():
    model, (prompt,) = decoder("llama"), prompts(20)
    tokens = greedy(model, prompt, 30)
    end = next(token for at, token in enumerate(tokens) if at > 3 and tokens.index(token) == at)
    engine = Engine(model, end=[end])
    jobs = [engine.add(prompt, Sampling(max_tokens=30, ignore_eos=ignore)) for ignore in (False, True)]
    jobs.append(engine.add(prompt, Sampling(max_tokens=30, ignore_eos=True, stop_token_ids=(tokens[2],))))
    while engine.busy:
        engine.step()
    assert jobs[0].finished == "stop" and jobs[0].tokens == tokens[: tokens.index(end) + 1]
    assert jobs[1].finished == "length" and jobs[1].tokens == tokens
    assert jobs[2].tokens == tokens[: tokens.index(tokens[2]) + 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_requests": 0}, "max_requests must be an integer of at least 1, got 0"),
        ({"chunk": True}, "chunk must be an integer of at least 1, got True"),
        ({"memory": 1000, "max_length": 100}, "memory of 1,000 bytes holds the keys of 0 tokens"),
        ({"max_length": 4096}, "at most the model's 2048 tokens, got 4096"),
        ({"sparsity": Sparsity(dense_layers=(3,))}, "dense_layers must be from 0 to 2, got 3"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_does(arguments, said):
    with pytest.raises(ValueError, match=said):
        Engine(decoder("llama"), **arguments)


def test_long_prompts_are_refused_with_both_numbers():
    engine = Engine(decoder("llama"), max_length=100)
    with pytest.raises(
        ValueError, match="prompt has 90 tokens and max_tokens is 11: 101 together, expected at most 100"
    ):
        engine.add(prompts(90)[0], Sampling(max_tokens=11))
    with pytest.raises(ValueError, match="at least one token"):
        engine.add([], Sampling())
    with pytest.raises(ValueError, match=f"{VOCABULARY}"):
        engine.add([VOCABULARY], Sampling())
    assert not engine.busy


def test_turns_that_depend_on_the_batch_are_refused():
    model = decoder("llama")
    kept = model.config.rope_parameters
    try:
        model.config.rope_parameters = {**kept, "rope_type": "dynamic"}
        with pytest.raises(ValueError, match="RoPE of type 'dynamic'"):
            Engine(model)
    finally:
        model.config.rope_parameters = kept


@pytest.mark.parametrize("per", ["kv_group", "q_head"])
def test_a_request_may_have_a_budget_of_its_own(per):
    """In one batch each request reads what it would alone in an engine of its budget; 0: all."""
    model, budgets = decoder("llama"), (None, 0, 192, 320)
    requests = prompts(*[500] * len(budgets))
    shared = Engine(model, sparsity=Sparsity(token_budget=256, select_per=per), end=[], max_requests=4)
    jobs = [
        shared.add(prompt, Sampling(max_tokens=24), token_budget=budget)
        for prompt, budget in zip(requests, budgets, strict=True)
    ]
    while shared.busy:
        shared.step()
    for job, prompt, budget in zip(jobs, requests, (256, None, 192, 320), strict=True):
        sparsity = Sparsity() if budget is None else Sparsity(token_budget=budget, select_per=per)
        assert [job.tokens] == run(Engine(model, sparsity=sparsity, end=[]), [prompt], 24)
    assert jobs[0].tokens != run(Engine(model, end=[]), [requests[0]], 24)[0]  # budgets change something here


def test_a_budget_that_cannot_be_held_is_refused():
    dense, sparse = Engine(decoder("llama")), Engine(decoder("llama"), sparsity=Sparsity(token_budget=192))
    for engine, budget, said in (
        (dense, 192, "token_budget needs an engine with a budget of its own, got 192"),
        (sparse, 100, "token_budget must be a multiple of the page"), (sparse, 64, "at least 192"),
        (sparse, -64, "at least 192"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            engine.add([1, 2], Sampling(), token_budget=budget)
        assert not engine.busy
    dense.stop(dense.add([1, 2], Sampling(), token_budget=0))

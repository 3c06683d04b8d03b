"""What prompts read by a policy: pages that hold what is looked for, however a prompt is cut, and counted."""

from __future__ import annotations

import math

import pytest
import torch
from serving_decoders import decoder, prompts

from gossamer.serving import Antidiagonal, Engine, Sampling, Sparsity, VerticalSlash
from gossamer.serving.prefill import likeliest

HEADS, GROUP, WIDTH, PAGE = 2, 2, 32, 64
EVERYTHING = {"antidiagonal": Antidiagonal(mass=1.0, beyond=0), "vertical slash": VerticalSlash(99, 99, beyond=0)}


def weights(q, keys, scale):
    """The softmax of the last tokens of a text: [heads, group, tokens, length]."""
    at = torch.arange(keys.shape[1] - q.shape[2], keys.shape[1])[:, None]
    scores = (q @ keys[:, None].transpose(-1, -2)) * scale
    return scores.masked_fill(torch.arange(keys.shape[1]) > at, -math.inf).softmax(-1)


def drawn(tokens: int, length: int):
    return torch.randn(HEADS, GROUP, tokens, WIDTH), torch.randn(HEADS, length, WIDTH)


@pytest.mark.parametrize(("tokens", "length"), [(64, 64), (100, 100), (200, 712), (1, 513), (130, 642)])
@pytest.mark.parametrize("policy", EVERYTHING.values(), ids=EVERYTHING)
def test_all_of_it_is_what_is_before(policy, tokens, length):
    q, keys = drawn(tokens, length)
    chosen = policy.choose(q, keys, PAGE, WIDTH**-0.5)
    first = (length - tokens) // PAGE
    own = torch.arange(first, first + chosen.shape[0])[:, None, None]
    assert torch.equal(chosen, (torch.arange(-(-length // PAGE)) <= own).expand_as(chosen))


def test_a_stride_of_one_is_the_softmax_itself():
    q, keys = drawn(128, 640)
    exact = weights(q, keys, WIDTH**-0.5).view(HEADS, GROUP, 2, PAGE, 10, PAGE).sum((1, 3, 5)) / (GROUP * PAGE)
    for mass in (0.3, 0.6, 0.9):
        found = Antidiagonal(mass=mass, stride=1, beyond=0).choose(q, keys, PAGE, WIDTH**-0.5)
        assert torch.equal(found, likeliest(exact.transpose(0, 1), mass, None))
        assert ((exact.transpose(0, 1) * found).sum(2) >= mass).all()


def test_a_stretch_that_is_looked_for_is_found():
    """Keys of one page are like the queries of one block; estimates by antidiagonals see that."""
    q, keys = drawn(256, 1280)
    q[:, :, 70:100], keys[:, 330:360] = 2.0, 2.0
    chosen = Antidiagonal(mass=0.5, stride=16, most=3, beyond=0).choose(q, keys, PAGE, WIDTH**-0.5)
    assert chosen[1, :, 330 // PAGE].all() and chosen.sum(2).amax() <= 3


def test_columns_and_distances_are_found():
    q, keys = drawn(640, 640)
    keys[:, 200] = 2.0
    q += 0.5  # everybody looks at key 200
    chosen = VerticalSlash(vertical=1, slash=1, beyond=0).choose(q, keys, PAGE, 1.0)
    assert chosen[4:, :, 200 // PAGE].all()
    unit = torch.nn.functional.one_hot(torch.arange(640) % 32, 32).float() * 9
    q = unit.roll(256, 0).expand(HEADS, GROUP, 640, WIDTH)  # each looks for the key 256 before it, and its like
    near = VerticalSlash(vertical=1, slash=20, beyond=0).choose(q, unit.expand(HEADS, 640, WIDTH), PAGE, 1.0)
    assert near[9, :, 9 - 4].all()


def test_equal_pages_go_to_the_earlier_and_some_are_always_held():
    mass = torch.full((1, 1, 8), 1 / 8)
    assert likeliest(mass, 0.5, None)[0, 0].nonzero().flatten().tolist() == [0, 1, 2, 7]
    assert likeliest(mass, 0.9, 2)[0, 0].nonzero().flatten().tolist() == [0, 7]


@pytest.mark.parametrize("policy", EVERYTHING.values(), ids=EVERYTHING)
def test_reading_all_by_a_policy_has_the_bits_of_dense_attention(policy):
    model, requests = decoder("llama"), prompts(300, 500)
    found = []
    for sparsity in (Sparsity(), Sparsity(prefill=policy)):
        engine = Engine(model, sparsity=sparsity, end=[], chunk=256)
        jobs = [engine.add(prompt, Sampling(max_tokens=3, logprobs=4)) for prompt in requests]
        while engine.busy:
            engine.step()
        found.append([job.choices for job in jobs])
        assert engine.tally.prefill_read == engine.tally.prefill_keys
    assert found[0] == found[1]


@pytest.mark.parametrize("chunk", [64, 100, 1000])
def test_antidiagonals_do_not_depend_on_how_a_prompt_is_cut(chunk):
    model, (prompt,) = decoder("llama"), prompts(900)
    sparsity = Sparsity(prefill=Antidiagonal(mass=0.3, most=4, beyond=0))
    found = []
    for each in (chunk, 512):
        engine = Engine(model, sparsity=sparsity, end=[], chunk=each)
        job = engine.add(prompt, Sampling(max_tokens=5))
        while engine.busy:
            engine.step()
        found.append(job.tokens)
        assert engine.tally.prefill_read < 0.5 * engine.tally.prefill_keys
    assert found[0] == found[1]


def test_short_texts_are_read_whole():
    engine = Engine(decoder("llama"), sparsity=Sparsity(prefill=Antidiagonal(mass=0.1, most=2)), end=[])
    engine.add(prompts(700)[0], Sampling(max_tokens=1))
    while engine.busy:
        engine.step()
    assert engine.tally.prefill_read == engine.tally.prefill_keys


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Antidiagonal(mass=0.0), "mass must be above 0"),
        (lambda: Antidiagonal(stride=3), "stride must be a power of two"),
        (lambda: Antidiagonal(most=1), "most must be at least 2"),
        (lambda: VerticalSlash(slash=0), "slash must be at least 1, got 0"),
        (lambda: Sparsity(prefill="xattention"), "prefill must be a policy"),
        (
            lambda: Engine(decoder("llama"), sparsity=Sparsity(prefill=Antidiagonal()), chunk=32),
            "at least a page of 64",
        ),
    ],
)
def test_numbers_out_of_range_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()

"""Sampling: its arguments, the probabilities of transformers' processors, draws that depend on nothing else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gossamer.serving.sampling import Choice, Sampler, Sampling, choose

WRONG = [
    ("max_tokens", 0, ValueError, "of at least 1"),
    ("max_tokens", 1.0, TypeError, "an integer"),
    ("max_tokens", True, TypeError, "an integer"),
    ("temperature", -0.1, ValueError, "of at least 0"),
    ("temperature", math.nan, ValueError, "finite"),
    ("temperature", math.inf, ValueError, "finite"),
    ("temperature", 10**400, ValueError, "finite"),
    ("temperature", "1", TypeError, "number"),
    ("temperature", False, TypeError, "number"),
    ("top_k", 0, ValueError, "of at least 1, or None"),
    ("top_k", -1, ValueError, "or None"),
    ("top_k", 5.0, TypeError, "an integer"),
    ("top_p", 0.0, ValueError, "above 0"),
    ("top_p", 1.01, ValueError, "at most 1"),
    ("top_p", math.nan, ValueError, "finite"),
    ("min_p", -0.1, ValueError, "from 0 to 1"),
    ("min_p", 1.1, ValueError, "from 0 to 1"),
    ("min_p", None, TypeError, "number"),
    ("repetition_penalty", 0.0, ValueError, "above 0"),
    ("repetition_penalty", math.nan, ValueError, "finite"),
    ("presence_penalty", math.inf, ValueError, "finite"),
    ("frequency_penalty", math.nan, ValueError, "finite"),
    ("seed", 0.5, TypeError, "an integer, or None"),
    ("seed", True, TypeError, "an integer, or None"),
    ("stop", 5, TypeError, "a string"),
    ("stop", b"END", TypeError, "a string"),
    ("stop", ("a", 5), TypeError, "a string"),
    ("stop", ("a", ""), ValueError, "at least one letter"),
    ("stop_token_ids", 5, TypeError, "a sequence"),
    ("stop_token_ids", "5", TypeError, "a sequence"),
    ("stop_token_ids", (1, -1), ValueError, "of at least 0"),
    ("stop_token_ids", (1, 2.0), TypeError, "an integer"),
    ("ignore_eos", 1, TypeError, "True or False"),
    ("logprobs", -1, ValueError, "of at least 0, or None"),
    ("logprobs", True, TypeError, "an integer"),
    ("logit_bias", [1], TypeError, "a mapping"),
    ("logit_bias", {-1: 1.0}, ValueError, "of at least 0"),
    ("logit_bias", {"1": 1.0}, TypeError, "an integer"),
    ("logit_bias", {7: math.nan}, ValueError, "finite"),
    ("logit_bias", {7: math.inf}, ValueError, "finite"),
    ("logit_bias", {7: "x"}, TypeError, "number"),
]


@pytest.mark.parametrize(("name", "value", "error", "expected"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(name, value, error, expected):
    with pytest.raises(error) as raised:
        Sampling(**{name: value})
    said = str(raised.value)
    wrong = next(iter(value.items())) if isinstance(value, dict) else value
    shown = [value] if not isinstance(value, (tuple, dict)) else list(wrong)
    assert name in said and expected in said and any(repr(part) in said for part in shown)


def test_values_are_kept_in_plain_types():
    sampling = Sampling(
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        stop="END",
        stop_token_ids=[np.int64(2)],
        logit_bias={np.int64(1): -math.inf},
    )
    assert sampling.stop == ("END",) and sampling.stop_token_ids == (2,) and sampling.logit_bias == {1: -math.inf}
    assert type(sampling.max_tokens) is int and type(sampling.temperature) is float
    assert hash(sampling) == hash(Sampling(3, 0.5, stop=("END",), stop_token_ids=(2,)))
    with pytest.raises(AttributeError):
        sampling.temperature = 1.0  # type: ignore[misc]


def logits_of(vocabulary: int, *, seed: int, rows: int = 1, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def presence_and_frequency(presence: float, frequency: float, output: list[int]):
    """OpenAI's formula, written as it is documented."""

    def change(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token in set(output):
            scores[0, token] -= presence + frequency * output.count(token)
        return scores

    return change


CASES = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 5.0},
    "top-k": {"top_k": 5},
    "one": {"top_k": 1},
    "top-p": {"top_p": 0.8},
    "top-p of few": {"top_p": 0.05},
    "top-p of nearly all": {"top_p": 0.999},
    "min-p": {"min_p": 0.1},
    "min-p of the best": {"min_p": 1.0},
    "repetition": {"repetition_penalty": 1.7},
    "repetition sought": {"repetition_penalty": 0.6},
    "presence and frequency": {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    "bias": {"logit_bias": {3: 4.0, 5: -2.0, 8: -math.inf}},
    "all": {
        "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3,
        "presence_penalty": 0.5, "frequency_penalty": -0.25, "logit_bias": {3: 4.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_those_of_transformers(case):
    generation = pytest.importorskip("transformers.generation.logits_process")
    options = {"temperature": 1.0, **CASES[case]}
    prompt, output = [3, 17, 17, 60], [5, 9, 5, 3]
    for seed in range(10):
        vocabulary = 64 if seed % 2 else 700
        logits = logits_of(vocabulary, seed=seed)
        processors = [generation.RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0))]
        penalties = (options.get("presence_penalty", 0.0), options.get("frequency_penalty", 0.0))
        processors.append(presence_and_frequency(*penalties, output))
        if "logit_bias" in options:
            bias = {(token,): value for token, value in options["logit_bias"].items()}
            processors.append(generation.SequenceBiasLogitsProcessor(bias))
        processors.append(generation.TemperatureLogitsWarper(options["temperature"]))
        if "top_k" in options:
            processors.append(generation.TopKLogitsWarper(options["top_k"]))
        processors.append(generation.TopPLogitsWarper(options.get("top_p", 1.0)))
        processors.append(generation.MinPLogitsWarper(options.get("min_p", 0.0)))
        expected = logits.double()
        for processor in processors:
            expected = processor(torch.tensor([prompt + output]), expected)
        expected = expected.softmax(-1)[0]

        sampler = Sampler(Sampling(**options), prompt, vocabulary)
        for token in output:
            sampler._take(token)
        found = sampler.probabilities(logits[0])
        assert found.dtype == torch.float64
        assert torch.equal(found > 0, expected > 0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("option", [{"top_k": 50}, {"top_k": 1000}, {"top_p": 1.0}, {"min_p": 0.0}, {"logit_bias": {}}])
def test_what_keeps_all_changes_nothing(option):
    logits = logits_of(50, seed=1)[0]
    plain = Sampler(Sampling(temperature=0.9), [], 50).probabilities(logits)
    assert torch.equal(Sampler(Sampling(temperature=0.9, **option), [], 50).probabilities(logits), plain)
    assert (plain > 0).all()


def test_equal_logits_are_kept_or_dropped_together():
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.bfloat16)
    for option in ({"top_k": 1}, {"top_k": 3}, {"top_p": 0.1}, {"top_p": 1e-17}, {"min_p": 1.0}):
        found = Sampler(Sampling(temperature=1.0, **option), [], 5).probabilities(logits)
        torch.testing.assert_close(found, torch.tensor([0, 1, 1, 1, 0], dtype=torch.float64) / 3)
    even = Sampler(Sampling(temperature=1.0, top_p=1e-17), [], 4).probabilities(torch.zeros(4))
    assert torch.equal(even, torch.full((4,), 0.25, dtype=torch.float64))


def test_penalties_follow_the_tokens_as_they_are_chosen():
    logits = torch.tensor([4.0, 3.0, 2.5, -1.0])
    sampler = Sampler(Sampling(presence_penalty=0.75, frequency_penalty=0.5), [0], 4)
    # 4 3 2.5 | 2.75 3 2.5 | 2.75 1.75 2.5 | 2.25 1.75 2.5
    assert [sampler.choose(logits).token for _ in range(4)] == [0, 1, 0, 2]
    repeated = Sampler(Sampling(repetition_penalty=2.0), torch.tensor([0]), 4)
    assert [repeated.choose(logits).token for _ in range(3)] == [1, 2, 0]  # 2 3 2.5 | 2 1.5 2.5 | 2 1.5 1.25


def test_draws_have_the_probabilities():
    """Of n draws, each token's count is within five standard deviations of its expectation, and so is each pair's."""
    n = 1500
    logits = torch.tensor([2.0, 1.0, -math.inf, 1.5, 0.0, -0.5, 3.0, -9.0])
    for options in ({}, {"top_k": 4}, {"top_p": 0.8}, {"temperature": 2.5}, {"min_p": 0.2}):
        sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 11, **options}), [], 8)
        expected = sampler.probabilities(logits)
        found = torch.bincount(torch.tensor([sampler.choose(logits).token for _ in range(n)]), minlength=8)
        assert not found[expected == 0].any()
        assert ((found - n * expected).abs() <= 5 * (n * expected * (1 - expected)).sqrt() + 1e-6).all()
    sampler = Sampler(Sampling(temperature=1.0, seed=3), [], 2)
    tokens = [sampler.choose(torch.zeros(2)).token for _ in range(n)]
    pairs = torch.tensor([2 * a + b for a, b in itertools.pairwise(tokens)]).bincount(minlength=4)
    assert ((pairs - n / 4).abs() < 5 * math.sqrt(n * 3 / 16)).all()


KINDS = [
    Sampling(),
    Sampling(temperature=1.0, seed=5),
    Sampling(temperature=1.0, seed=6, top_p=0.9, logprobs=3),
    Sampling(repetition_penalty=1.5, logprobs=0),
    Sampling(temperature=0.7, seed=5, top_k=8, presence_penalty=1.0),
    Sampling(logit_bias={4: 3.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_choice_depends_on_its_own_request_only(dtype):
    vocabulary, steps = 300, 6
    logits = [logits_of(vocabulary, seed=step, rows=len(KINDS)).to(dtype) for step in range(steps)]

    def solo(row: int) -> list[Choice]:
        sampler = Sampler(KINDS[row], [row, 7], vocabulary)
        return [sampler.choose(logits[step][row]) for step in range(steps)]

    alone = [solo(row) for row in range(len(KINDS))]
    assert alone == [solo(row) for row in range(len(KINDS))]
    threads = torch.get_num_threads()
    try:
        for order, count in (([0, 1, 2, 3, 4, 5], 1), ([5, 2, 0, 4, 1, 3], 2), ([3, 1], 2)):
            torch.set_num_threads(count)
            samplers = {row: Sampler(KINDS[row], [row, 7], vocabulary) for row in order}
            for step in range(steps):
                found = choose(logits[step][order], list(samplers.values()))
                assert found == [alone[row][step] for row in order]
    finally:
        torch.set_num_threads(threads)


def test_the_kth_token_has_the_kth_number_whatever_the_others_were():
    """Another distribution at one step, even a certain one, moves none of the later draws."""
    flat, certain = torch.zeros(1000), torch.full((1000,), -math.inf)
    certain[3] = 0.0
    straight, other = (Sampler(Sampling(temperature=1.0, seed=9), [], 1000) for _ in range(2))
    tokens = [straight.choose(flat).token for _ in range(5)]
    moved = [other.choose(certain if step == 2 else flat).token for step in range(5)]
    assert moved == [*tokens[:2], 3, *tokens[3:]]
    assert len(set(tokens)) > 3
    unlike = Sampler(Sampling(temperature=1.0, seed=10), [], 1000)
    assert [unlike.choose(flat).token for _ in range(5)] != tokens


def test_without_a_seed_each_request_has_its_own_which_repeats_it():
    flat = torch.zeros(1000)
    before = torch.get_rng_state()
    samplers = [Sampler(Sampling(temperature=1.0), [], 1000) for _ in range(2)]
    tokens = [[sampler.choose(flat).token for _ in range(4)] for sampler in samplers]
    assert tokens[0] != tokens[1]
    again = Sampler(Sampling(temperature=1.0, seed=samplers[1].seed), [], 1000)
    assert [again.choose(flat).token for _ in range(4)] == tokens[1]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{}, {"logit_bias": {0: 0.0}}, {"repetition_penalty": 1.1}])
def test_greedy_takes_the_lowest_of_equals(options):
    logits = torch.zeros(50000, dtype=torch.bfloat16)
    logits[[31, 7000, 49999]] = 2.0
    for threads in (1, 2):
        kept = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert Sampler(Sampling(**options), [], 50000).choose(logits).token == 31
        finally:
            torch.set_num_threads(kept)


def test_a_temperature_near_zero_is_greedy_and_raises_no_warning():
    logits = logits_of(100, seed=2)[0]
    for temperature in (1e-6, 5e-324):
        with np.errstate(all="raise", under="ignore"):
            sampler = Sampler(Sampling(temperature=temperature, seed=1), [], 100)
            assert sampler.choose(logits).token == logits.argmax()


def test_logprobs_are_of_the_model_before_anything_changes_them():
    logits = logits_of(40, seed=4)[0]
    logits[9] = -math.inf
    expected = logits.double().log_softmax(0)
    for k in (0, 5, 40):
        sampling = Sampling(temperature=0.5, top_k=3, logit_bias={2: 50.0}, repetition_penalty=1.2, logprobs=k)
        choice = Sampler(sampling, [1], 40).choose(logits)
        assert choice.token == 2
        assert choice.logprob == pytest.approx(expected[2].item(), abs=1e-12)
        assert [token for token, _ in choice.top] == expected.argsort(descending=True)[:k].tolist()
        for token, logprob in choice.top:
            assert logprob == pytest.approx(expected[token].item(), abs=1e-12)
    nothing = Sampler(Sampling(), [], 40).choose(logits)
    assert nothing.logprob is None and nothing.top == ()
    equal = Sampler(Sampling(logprobs=3), [], 6).choose(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0]))
    assert [token for token, _ in equal.top] == [1, 3, 0]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"logprobs": 1}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_named_and_move_no_sampler(options, value):
    logits = torch.zeros(2, 10)
    logits[1, 6] = value
    samplers = [Sampler(Sampling(**options), [], 10) for _ in range(2)]
    with pytest.raises(ValueError, match=f"got {value} for token 6 of row 1"):
        choose(logits, samplers)
    with pytest.raises(ValueError, match=f"got {value} for token 6"):
        samplers[1].probabilities(logits[1])
    assert [sampler.count for sampler in samplers] == [0, 0]


def test_no_token_to_choose_is_an_error_and_moves_no_sampler():
    logits = torch.zeros(2, 4)
    logits[1] = -math.inf
    samplers = [Sampler(Sampling(temperature=1.0), [], 4) for _ in range(2)]
    with pytest.raises(ValueError, match="got -inf for all 4 of row 1"):
        choose(logits, samplers)
    samplers[1] = Sampler(Sampling(logit_bias=dict.fromkeys(range(4), -math.inf)), [], 4)
    with pytest.raises(ValueError, match="must leave a token to choose"):
        choose(torch.zeros(2, 4), samplers)
    samplers[1] = Sampler(Sampling(repetition_penalty=1e-320), [2], 4)
    with pytest.raises(ValueError, match="no logit above float64, got inf"):
        choose(torch.ones(2, 4), samplers)
    assert [sampler.count for sampler in samplers] == [0, 0]


def test_arguments_that_do_not_fit_are_named():
    sampler = Sampler(Sampling(), [], 4)
    for logits, error, said in (
        (torch.zeros(5), ValueError, r"of 4 tokens, got shape \(1, 5\)"),
        (torch.zeros(1, 4), ValueError, r"\[vocabulary\], got shape \(1, 4\)"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "floating dtype, got torch.int64"),
        ([0.0] * 4, TypeError, "got list"),
    ):
        with pytest.raises(error, match=said):
            sampler.choose(logits)
    with pytest.raises(ValueError, match=r"one row per sampler, 1, got shape \(2, 4\)"):
        choose(torch.zeros(2, 4), [sampler])
    with pytest.raises(ValueError, match="must be different ones"):
        choose(torch.zeros(2, 4), [sampler, sampler])
    with pytest.raises(TypeError, match="sequence of Sampler"):
        choose(torch.zeros(1, 4), [Sampling()])
    assert choose(torch.zeros(0, 4), []) == [] and sampler.count == 0
    for sampling, prompt, error, said in (
        (Sampling(), [4], ValueError, "prompt_token_ids must be below the vocabulary of 4, got 4"),
        (Sampling(), torch.tensor([1, -1]), ValueError, "prompt_token_ids must be an integer of at least 0, got -1"),
        (Sampling(), [1.0], TypeError, "prompt_token_ids must be an integer"),
        (Sampling(stop_token_ids=(9,)), [], ValueError, "stop_token_ids must be below"),
        (Sampling(logit_bias={9: 1.0}), [], ValueError, "logit_bias must be below"),
        (Sampling(logprobs=5), [], ValueError, "at most the 4 tokens there are, got 5"),
        ({}, [], TypeError, "must be a Sampling"),
    ):
        with pytest.raises(error, match=said):
            Sampler(sampling, prompt, 4)
    with pytest.raises(ValueError, match="vocabulary must be an integer of at least 1, got 0"):
        Sampler(Sampling(), [], 0)


def test_a_number_on_a_boundary_never_takes_a_token_of_no_weight(monkeypatch):
    monkeypatch.setattr(Sampler, "_uniform", lambda self: 0.0)
    sampler = Sampler(Sampling(temperature=1.0), [0], 2)
    assert sampler.choose(torch.tensor([-torch.inf, 0.0])).token == 1

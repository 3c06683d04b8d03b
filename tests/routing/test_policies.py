"""The laws of every policy: what it may look at, that order in a batch is nothing to it, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from naive_routes import UNITS, WIDTH, Stack, run
from torch import Tensor

from gossamer.routing import (
    EarlyExit,
    ExpertChoice,
    Hops,
    Jumps,
    PerText,
    PerUnit,
    Policy,
    RandomSkip,
    Recursions,
    Static,
    Tokens,
)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Policy]
    causal: bool = True  # so a prompt in one pass routes as token by token
    learns: bool = True


def _gap(before: Tensor, after: Tensor) -> Tensor:
    return after.mean(1)


CASES = {
    "jumps": Case(lambda: Jumps(UNITS, WIDTH)),
    "joint jumps": Case(lambda: Jumps(UNITS, WIDTH, joint=True)),
    "sequential": Case(lambda: Jumps(UNITS, WIDTH, mode="sequential"), learns=False),
    "static": Case(lambda: Static(UNITS, WIDTH, [0, 3, 4]), learns=False),
    "random": Case(lambda: RandomSkip(UNITS, WIDTH, 0.4, seed=3), learns=False),
    "exit": Case(lambda: EarlyExit(UNITS, WIDTH, 3), learns=False),
    "saturation": Case(lambda: EarlyExit(UNITS, WIDTH, threshold=0.8), learns=False),
    "confidence": Case(lambda: EarlyExit(UNITS, WIDTH, 4, threshold=0.1, measure=_gap, first=2), learns=False),
    "expert choice": Case(lambda: ExpertChoice(UNITS, WIDTH, 0.4)),
    "best k": Case(lambda: ExpertChoice(UNITS, WIDTH, 0.4, causal=False), causal=False),
    "hops": Case(lambda: Hops(3, 3, WIDTH)),
    "recursions": Case(lambda: Recursions(3, WIDTH, (0.9, 0.6, 0.3))),
    "per text": Case(lambda: PerText(UNITS, WIDTH), causal=False),
    "per unit": Case(lambda: PerUnit(UNITS, WIDTH, [1, 0.5, 0.5, 0.9, 0.3])),
}  # fmt: skip


def trained(name: str) -> Policy:
    """Every parameter away from where it began, thresholds in the midst of the gates."""
    policy = CASES[name].make().double()
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for buffer in policy.buffers():
        buffer.zero_()
    return policy


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def routes(name: str, h: Tensor, tokens: Tokens) -> Tensor:
    return run(Stack(), trained(name).eval(), h, tokens).weights


@pytest.mark.parametrize("name", CASES)
def test_earlier_tokens_do_not_see_later_ones(name: str) -> None:
    h, seen = states(24), 16
    whole = routes(name, h, Tokens.of([24]))[:, :seen]
    others = [routes(name, torch.cat([h[:seen], states(8, seed)]), Tokens.of([24]))[:, :seen] for seed in (1, 2, 3)]
    same = all(torch.equal(whole > 0, other > 0) for other in others)
    assert same == CASES[name].causal == trained(name).causal, "the control must see the future, the others must not"
    if CASES[name].learns:
        assert 0 < (whole > 0).double().mean() < 1


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_texts_is_nothing(name: str) -> None:
    counts = [5, 9, 1, 7]
    h = states(sum(counts)).split(counts)
    mine = routes(name, torch.cat(h), Tokens.of(counts)).split(counts, dim=1)
    turned = [2, 0, 3, 1]
    other = routes(name, torch.cat([h[i] for i in turned]), Tokens.of([counts[i] for i in turned]))
    for place, found in zip(turned, other.split([counts[i] for i in turned], dim=1), strict=True):
        torch.testing.assert_close(found, mine[place], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.causal])
def test_a_prompt_routes_as_its_tokens_one_by_one(name: str) -> None:
    policy, h = trained(name).eval(), states(12)
    whole = run(Stack(), policy, h, Tokens.of([12]), alone=True)
    for place in range(12):
        one = run(Stack(), policy, h[place : place + 1], Tokens.of([1], [place], decoding=1))
        torch.testing.assert_close(one.weights[:, 0], whole.weights[:, place], atol=1e-12, rtol=0)


@pytest.mark.parametrize("phase", ["soft", "hard"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.learns])
def test_everything_learns(name: str, phase: str) -> None:
    policy = trained(name)
    for parameter in policy.parameters():
        parameter.data *= 0.3
    policy.train().phase = phase
    outcome = run(Stack(), policy, states(48), Tokens.of([20, 28]))
    loss = outcome.h.square().sum() + outcome.walk.expected.sum() + sum(outcome.walk.losses.values())
    loss.backward()
    gated = [1, 2, 3, 4] if name == "per unit" else slice(None)  # its first unit has no gate
    for key, parameter in policy.named_parameters():
        grad = parameter.grad if "predictors" in key or "router" in key else parameter.grad[gated]
        assert grad.flatten(1).abs().sum(1).all() if "gate" in key or "score" in key else grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", CASES)
def test_what_is_made_in_inference_mode_can_learn(name: str) -> None:
    with torch.inference_mode():
        policy = CASES[name].make()
    assert not any(each.is_inference() for each in [*policy.parameters(), *policy.buffers()])


@pytest.mark.parametrize("name", CASES)
def test_what_is_expected_is_what_runs(name: str) -> None:
    policy = trained(name).train()
    torch.manual_seed(0)
    texts = [1000] if name == "random" else [15, 25]
    outcome = run(Stack(), policy, states(sum(texts)), Tokens.of(texts))
    tolerance = 0.06 if name == "random" else 1e-6
    expected = outcome.walk.expected.double()
    torch.testing.assert_close(expected, outcome.rows.double().mean(1), atol=tolerance, rtol=0)
    assert run(Stack(), policy.eval(), states(40), Tokens.of([40])).walk.expected is None


def test_capacity_is_kept_and_predicted() -> None:
    policy = trained("expert choice").train()
    counts = [7, 20, 1]
    outcome = run(Stack(), policy, states(28), Tokens.of(counts))
    for unit, rows in enumerate(outcome.rows):
        ran = [int(part.sum()) for part in rows.split(counts)]
        assert ran == ([3, 8, 1] if unit in policy.routed else counts)
    # The predictor learns which ones they were, from the state alone, and moves nothing else.
    h, tokens = states(400), Tokens.of([40] * 10)
    optimizer = torch.optim.Adam(policy.predictors.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        run(Stack(), policy, h, tokens).walk.losses["predictor"].backward()
        optimizer.step()
    assert policy.score.grad is None
    best = run(Stack(), policy, h, tokens).rows[policy.routed]
    guess = run(Stack(), policy.eval(), h, tokens).rows[policy.routed]
    assert (best == guess).double().mean() > 0.9


def test_thresholds_follow_the_share() -> None:
    policy = PerUnit(UNITS, WIDTH, [1, 0.5, 0.5, 0.9, 0.3], momentum=0.5).double()
    h, tokens = states(1000), Tokens.of([100] * 10)
    assert run(Stack(), policy.eval(), h, tokens).rows.all(), "nothing is known yet"
    policy.train()
    for _ in range(12):
        run(Stack(), policy, h, tokens)
    shares = run(Stack(), policy.eval(), h, tokens).rows.double().mean(1)
    found = []
    for texts in ([h], [states(1000, 8)], [h, states(1000, 8)]):
        fresh = PerUnit(UNITS, WIDTH, 0.5, momentum=0.75).double().train()
        fresh.load_state_dict({**policy.state_dict(), "threshold": torch.full((UNITS,), -torch.inf)})
        for each in texts:
            fresh.begin(each, tokens).enter(1, each)
        found.append(fresh.threshold[1])
    torch.testing.assert_close(found[2], 0.75 * found[0] + 0.25 * found[1])
    torch.testing.assert_close(shares, torch.tensor(policy.shares, dtype=torch.float64), atol=0.03, rtol=0)


def test_a_text_keeps_its_route() -> None:
    policy = trained("per text").eval()
    h, tokens = states(30), Tokens.of([10, 20])
    prompt = run(Stack(), policy, h, tokens)
    assert not torch.equal(prompt.rows[:, 0], prompt.rows[:, 10])
    for text, part in enumerate(h.split([10, 20])):
        mean = torch.nn.functional.layer_norm(part.mean(0), (WIDTH,))
        assert prompt.rows[0, [0, 10][text]] == (mean @ policy.gate[0] + policy.open[0] > 0)
    for place in range(3):
        step = Tokens(torch.arange(2), torch.tensor([10, 20]) + place, 2, decoding=2, memory=tokens.memory)
        later = run(Stack(), policy, states(2, seed=place + 50), step)
        assert torch.equal(later.rows, prompt.rows[:, [0, 10]]) and later.walk.decisions == 0


def draws(policy: RandomSkip, h: Tensor, tokens: Tokens) -> Tensor:
    walk = policy.begin(h, tokens)
    return torch.stack([walk.enter(unit, h).rows for unit in range(policy.units)])


def test_random_draws_are_even_and_differ() -> None:
    policy = RandomSkip(3, WIDTH, [0, 0.3, 1]).eval()
    h = states(20_000)
    rows = draws(policy, h, Tokens.of([1] * 20_000)).double()
    assert rows.mean(1).tolist() == pytest.approx([1, 0.7, 0], abs=0.015)
    again = RandomSkip(2, WIDTH, 0.5, seed=1).eval(), RandomSkip(2, WIDTH, 0.5, seed=2).eval()
    first, second = (draws(each, h, Tokens.of([20_000])) for each in again)
    pairs = [(first[0], first[1]), (first[0], second[0]), (first[0][1:], first[0][:-1])]
    assert all((a == b).double().mean().item() == pytest.approx(0.5, abs=0.02) for a, b in pairs)
    twins = draws(again[0], h[:1].expand(5000, -1), Tokens.of([5000])).double()
    assert twins.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.03), "places of one token differ"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Static(3, 8, [0, 0]), "keep must name units of 0..2, each once"),
        (lambda: Static(3, 8, [3]), "keep must name units of 0..2"),
        (lambda: RandomSkip(3, 8, 1.5), "rate must be a probability or 3 of them, got 1.5"),
        (lambda: RandomSkip(3, 8, [0.5]), "rate must be a probability or 3 of them"),
        (lambda: EarlyExit(3, 8, 4), "unit must be an integer of 1..3, got 4"),
        (lambda: EarlyExit(3, 8, threshold=float("nan")), "threshold must be a finite number or None"),
        (lambda: ExpertChoice(3, 8, 0), r"capacity must be in \(0, 1\], got 0"),
        (lambda: ExpertChoice(3, 8, 0.5, routed=[7]), "routed must name units of 0..2"),
        (lambda: PerUnit(3, 8, [0.5, 0.5]), "shares must be one number or 3, got 2"),
        (lambda: PerUnit(3, 8, 1.2), r"shares must be in \(0, 1\], got 1.2"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make: Callable[[], Policy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

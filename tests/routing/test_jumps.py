"""The router and its jumps, against every path written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from naive_routes import UNITS, WIDTH, Stack, run

from gossamer.routing import Jumps, Router, Tokens


def trained(policy: Jumps, *, scale: float = 1.0, seed: int = 1) -> Jumps:
    """As after training: no parameter is where it began, and routes differ from token to token."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return policy.double()


def states(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def test_a_new_router_is_the_base_network() -> None:
    policy = Jumps(UNITS, WIDTH).double()
    tokens, h, stack = Tokens.of([3, 4]), states(7), Stack()
    whole = run(stack, Jumps(UNITS, WIDTH, mode="sequential").eval(), h, tokens)
    assert whole.rows.all() and whole.walk.decisions == 0
    for mode in (policy.eval(), policy.train()):
        routed = run(stack, mode, h, tokens)
        assert routed.rows.all() and torch.equal(routed.weights, torch.ones(UNITS, 7, dtype=torch.float64))
        assert torch.equal(routed.h, whole.h) and routed.walk.decisions == 7 * UNITS
    policy.phase = "soft"
    # A hop jumps with the probability e^-6 (n - 1) / n, where n targets are allowed.
    stays = [1 / (1 + torch.tensor(-6.0).exp().item() * (n - 1) / n) for n in range(UNITS + 1, 1, -1)]
    reach = run(stack, policy, h, tokens).weights[:2, 0].tolist()
    assert reach == pytest.approx([stays[0], stays[0] * stays[1] + (1 - stays[0]) / UNITS], rel=1e-9)


def test_reach_is_the_sum_over_all_paths() -> None:
    policy = trained(Jumps(UNITS, WIDTH))
    policy.train().phase, policy.temperature = "soft", 0.7
    soft = run(Stack(), policy, states(1), Tokens.of([1]))
    # The states do not depend on the path in a soft pass, but the mean of hops so far does: collect both by hand.
    h, at = states(1), []
    stack = Stack()
    for unit in range(UNITS):
        at.append(h)
        h = h + soft.weights[unit] * stack.branch(unit, h, Tokens.of([1]))
    after = [*at[1:], h]
    hops = [0.0] * UNITS

    def q(last: int, target: int) -> torch.Tensor:
        state, steps = (at[0], 0.0) if last < 0 else (after[last], hops[last])
        z = policy.router(state, last + 1, torch.tensor([steps], dtype=torch.float64), last + 1)
        return (z / 0.7).softmax(1)[0, target - last - 1]

    reach, entropy = torch.zeros(UNITS, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for unit in range(UNITS):  # paths up to each unit need the hop counts of the units before it alone
        paths = [(*middle, unit) for size in range(unit + 1) for middle in itertools.combinations(range(unit), size)]
        weights = [probability(path, q) for path in paths]
        reach[unit] = sum(weights)
        hops[unit] = (sum(w * len(path) for w, path in zip(weights, paths, strict=True)) / reach[unit]).item()
    for size in range(UNITS + 1):
        for path in itertools.combinations(range(UNITS), size):
            p = probability((*path, UNITS), q)
            entropy = entropy - p * p.log()
    torch.testing.assert_close(soft.weights[:, 0], reach)
    torch.testing.assert_close(soft.walk.expected, reach)
    torch.testing.assert_close(soft.walk.losses["entropy"], entropy)


def probability(path: tuple[int, ...], q) -> torch.Tensor:
    product = torch.ones((), dtype=torch.float64)
    for last, target in itertools.pairwise((-1, *path)):
        if not (last == UNITS - 1 and target == UNITS):
            product = product * q(last, target)
    return product


@pytest.mark.parametrize("phase", ["soft", "hard"])
def test_gradients_reach_every_parameter(phase: str) -> None:
    policy = trained(Jumps(UNITS, WIDTH), scale=0.3)
    policy.train().phase = phase
    outcome = run(Stack(), policy, states(64), Tokens.of([64]))
    (outcome.h.square().sum() + outcome.walk.expected.sum()).backward()
    for name, parameter in policy.router.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    # What no token can choose has none: a target behind the last unit.
    assert policy.router.prior.grad.tril(-1).abs().sum() == 0


def test_cold_soft_routes_are_the_hard_ones() -> None:
    policy = trained(Jumps(UNITS, WIDTH))
    tokens, h = Tokens.of([12, 20]), states(32)
    hard = run(Stack(), policy.eval(), h, tokens)
    assert 0 < hard.rows.sum() < hard.rows.numel() and len(hard.rows.unique(dim=1).T) > 3
    policy.train()
    straight = run(Stack(), policy, h, tokens)
    assert torch.equal(hard.rows, straight.rows) and torch.equal(hard.h, straight.h)
    assert straight.walk.decisions == hard.walk.decisions == 32 + int(hard.rows[:-1].sum())
    torch.testing.assert_close(straight.walk.expected, hard.rows.double().mean(1))
    policy.phase, policy.temperature = "soft", 1e-4
    soft = run(Stack(), policy, h, tokens)
    torch.testing.assert_close(soft.weights, hard.rows.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(soft.h, hard.h, atol=1e-5, rtol=0)


def test_one_token_at_a_time_routes_as_all_at_once() -> None:
    policy = trained(Jumps(UNITS, WIDTH)).eval()
    h = states(16)
    whole = run(Stack(), policy, h, Tokens.of([16]), alone=True)
    for place in range(16):
        one = run(Stack(), policy, h[place : place + 1], Tokens.of([1], [place], decoding=1))
        assert torch.equal(one.rows[:, 0], whole.rows[:, place])
    assert len(whole.rows.unique(dim=1).T) > 2


def test_joint_routes_are_those_of_the_mean() -> None:
    policy = trained(Jumps(UNITS, WIDTH, joint=True)).eval()
    apart = trained(Jumps(UNITS, WIDTH)).eval()
    h, texts = states(14), 5
    together = run(Stack(), policy, h[:texts], Tokens.of([1] * texts, [7] * texts, decoding=texts))
    assert all(len(set(row.tolist())) == 1 for row in together.rows)
    assert not torch.equal(run(Stack(), apart, h[:texts], Tokens.of([1] * texts)).rows, together.rows)
    # Beside a prompt: the decoding ones are together, the prompt's tokens go where they would go alone.
    counts, starts = [1] * texts + [9], [7] * texts + [0]
    mixed = run(Stack(), policy, h, Tokens.of(counts, starts, decoding=texts))
    assert torch.equal(mixed.rows[:, :texts], together.rows)
    assert torch.equal(mixed.rows[:, texts:], run(Stack(), apart, h[texts:], Tokens.of([9])).rows)
    assert mixed.walk.decisions > together.walk.decisions


def test_a_mean_of_hops_falls_between_two_embeddings() -> None:
    router = trained(Jumps(UNITS, WIDTH)).router
    h = states(3)
    for mean, low, share in ((0.0, 0, 0.0), (1.25, 1, 0.25), (float(UNITS), UNITS, 0.0)):
        z = router(h, 2, torch.full((3,), mean, dtype=torch.float64))
        blend = router.step[low] * (1 - share) + router.step[min(low + 1, UNITS)] * share
        plain = trained(Jumps(UNITS, WIDTH)).router
        plain.step.data[0] = blend.detach()
        torch.testing.assert_close(z, plain(h, 2, 0))
    assert torch.equal(router(h, 2, torch.tensor([0, 4, 1]))[1], router(h, 2, 4)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jumps(0, 8), "units must be an integer of at least 1, got 0"),
        (lambda: Jumps(4, 8, mode="free"), 'mode must be "skip" or "sequential", got \'free\''),
        (lambda: Jumps(4, 8, hidden=0), "hidden must be an integer of at least 1, got 0"),
        (lambda: Router(4, 8, mode="random"), 'mode must be "skip" or "free"'),
        (lambda: Router(4, 8, bias=float("nan")), "bias must be a finite number, got nan"),
    ],
)
def test_bad_arguments_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_router_begins_where_it_is_expected() -> None:
    """Every unit is skipped with its own probability, neighbours apart from each other; decisions take the likelier."""
    skipped = [0.01, 0.75, 0.6, 0.25, 0.3]
    policy = Jumps(UNITS, WIDTH).double()
    policy.expect(skipped)
    policy.phase, tokens, h = "soft", Tokens.of([3, 4]), states(7)
    found = run(Stack(), policy.train(), h, tokens).walk.expected
    assert found.tolist() == pytest.approx([1 - each for each in skipped])
    rows = run(Stack(), policy.eval(), h, tokens).rows
    assert rows.any(1).tolist() == rows.all(1).tolist() == [each < 0.5 for each in skipped]
    for wrong in (skipped[1:], [0.0, *skipped[1:]], [1.0, *skipped[1:]]):
        with pytest.raises(ValueError, match=f"skipped must be {UNITS} probabilities between 0 and 1"):
            policy.expect(wrong)
    with pytest.raises(ValueError, match='expect is for mode="skip"'):
        Jumps(UNITS, WIDTH, mode="sequential").expect(skipped)

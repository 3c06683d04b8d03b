"""Costs against torch's flop counter, counts against a loop over tokens, and a budget that is reached."""

from __future__ import annotations

import pytest
import torch
from serving_decoders import decoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gossamer.routing import Budget, Costs, Counter, EarlyExit, Jumps, Radial, RandomSkip, Stack, Static

LENGTH = 12


@pytest.mark.parametrize("family", ["llama", "llama, heads of 80", "qwen3", "opt", "phi", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("kind", ["block", "branch"])
def test_costs_are_those_that_torch_counts(family: str, kind: str) -> None:
    model = decoder(family)
    stack = Stack.of(model)
    if kind == "branch" and any(part.added for part in stack.parts):
        pytest.skip("branches of these layers are no units")
    costs = Costs.of(stack, stack.units(kind), context=LENGTH)  # eager attention looks at all keys
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(torch.randint(5, 50, (2, LENGTH)), use_cache=False)
    flops = counted.get_flop_counts()
    root = type(model).__name__
    for unit, linear, pair in zip(stack.units(kind), costs.linears, costs.pairs, strict=True):
        name = next(name for name, module in model.named_modules() if module is unit.module)
        assert sum(flops[f"{root}.{name}"].values()) == 2 * 2 * LENGTH * (linear + pair * LENGTH), name
    assert costs.most * 2 * LENGTH * 2 == sum(
        sum(flops[f"{root}.{stack.place}.{at}"].values()) for at in range(len(stack))
    )
    assert sum(flops[f"{root}.lm_head"].values()) == 2 * 2 * LENGTH * costs.head


def test_projections_are_those_of_keys_and_values() -> None:
    model = decoder("llama")
    stack = Stack.of(model)
    layer = stack.layers[0].self_attn
    both = layer.k_proj.weight.numel() + layer.v_proj.weight.numel()
    assert Costs.of(stack, stack.units("block"), context=1).projections == (both,) * len(stack)
    assert Costs.of(stack, stack.units("branch"), context=1).projections == (both, 0) * len(stack)


def test_stacks_without_a_config() -> None:
    stack = Stack.of(nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 32) for _ in range(3)))
    costs = Costs.of(stack, stack.units("block"), context=4)
    assert costs.linears == (4 * 64 + 2 * 8 * 32,) * 3 and costs.pairs == (16,) * 3 and costs.head == 0
    blocks = Stack.of(nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Embedding(9, 8)) for _ in range(2)))
    assert Costs.of(blocks, blocks.units("block"), context=4).most == 128


@pytest.mark.parametrize("kv", ["sparse", "project", "propagate"])
def test_counts_are_those_of_a_loop_over_tokens(kv: str) -> None:
    model = decoder("llama")
    radial = Radial(model, kv=kv, adapter=2, policy=RandomSkip(len(Stack.of(model)), 64, 0.5), sink=0).eval()
    counter = Counter(Costs.of_radial(radial, LENGTH))
    prompt = torch.randint(5, 50, (2, LENGTH))
    macs, costs, kept = 0, counter.costs, [[0, 0] for _ in radial.units]
    with torch.no_grad():
        out = radial(prompt, use_cache=True)
        passes = [radial.run]
        for _ in range(3):
            out = radial(torch.randint(5, 50, (2, 1)), past_key_values=out.past_key_values, use_cache=True)
            passes.append(radial.run)
    for run in passes:
        counter.add(run)
        for unit, rows in enumerate(run.rows):
            for text, runs in zip(run.tokens.text.tolist(), rows.tolist(), strict=True):
                kept[unit][text] += runs or kv != "sparse"
                if runs:
                    macs += costs.linears[unit] + costs.pairs[unit] * kept[unit][text]
                else:
                    macs += costs.adapters[unit] + (costs.projections[unit] if kv != "sparse" else 0)
    assert counter.macs == macs and counter.tokens == 2 * LENGTH + 6
    assert counter.ran == [sum(run.ran[unit] for run in passes) for unit in range(len(radial.units))]
    with pytest.raises(ValueError, match="goes on with 2 texts"):
        Counter(costs).add(passes[1])


def test_what_is_expected_is_what_is_counted() -> None:
    """Independent routes, a whole prompt: the mean of a router's shares says what its passes cost."""
    model = decoder("llama")
    units = len(Stack.of(model))
    for policy, more in (
        (Static(units, 64, [0]), {}), (Static(units, 64, [0]), {"kv": "project", "adapter": 3}),
        (EarlyExit(units, 64, 1), {}), (Jumps(units, 64), {}),
    ):  # fmt: skip
        radial = Radial(model, policy=policy, sink=0, **more).eval()
        with torch.no_grad():
            radial(torch.randint(5, 50, (3, LENGTH)))
        counter = Counter(Costs.of_radial(radial, (LENGTH + 1) / 2))
        counter.add(radial.run)
        shares = torch.tensor(counter.ran, dtype=torch.float64) / counter.tokens
        assert counter.share == pytest.approx(float(counter.costs.share(shares, policy.asked(shares))))
    assert counter.decisions == units * 3 * LENGTH and counter.costs.decision == policy.router.macs()
    assert counter.share == pytest.approx(1 + units * policy.router.macs() / counter.costs.most)


@pytest.mark.parametrize(("wanted", "start", "rate"), [(1, 6, 0.05), (0.1, 6, 0.05), (0.3, 6, 0.02), (-0.3, 2, 0.02)])
def test_a_budget_is_reached(wanted: float, start: float, rate: float) -> None:
    """Whatever a unit is worth, and if it is worth less than nothing; those go first that are worth least."""
    use = wanted * torch.tensor([3.0, 1.0, 2.0, 0.5])
    logits = torch.full((4,), float(start), requires_grad=True)
    optimizer, budget, costs = torch.optim.Adam([logits], lr=rate), Budget(0.6, warmup=150), []
    noise = torch.Generator().manual_seed(0)
    for _ in range(600):
        shares = logits.sigmoid()
        cost = shares.mean() + 0.02 * torch.randn((), generator=noise)
        optimizer.zero_grad()
        ((1 - shares) @ use + budget.loss(cost)).backward()
        optimizer.step()
        budget.update(float(cost.detach()))
        costs.append(float(shares.detach().mean()))
    assert sum(costs[-100:]) / 100 == pytest.approx(0.6, abs=0.012) and (budget.price > 0) == (wanted > 0)
    assert logits.argsort().tolist() == use.argsort().tolist()


def test_the_price_waits_while_the_cost_is_on_its_way() -> None:
    budget, prices = Budget(0.5, rate=2), []
    for cost in (0.9, 0.8, 0.7, 0.71, 0.72, 0.4):
        budget.update(cost)
        prices.append(round(budget.price, 9))
    # 0.05 off at most. The mean falls with all that follow: down to the budget that is the way, below it is not.
    assert prices == [0.1] * 5 + [0.0]
    for cost in (0.95, 0.52, 0.52):
        budget.update(cost)
    assert budget.price == pytest.approx(0.1) and budget.mean == pytest.approx(0.756959101)
    slow = Budget(0.5, warmup=4)
    targets = []
    for _ in range(6):
        slow.loss(torch.tensor(0.75))
        targets.append(slow.now)
        slow.update(0.7)
    assert targets == pytest.approx([0.75, 0.6875, 0.625, 0.5625, 0.5, 0.5])
    under = Budget(0.5, rate=2)
    under.update(0.49)
    assert under.price == pytest.approx(-0.02)


@pytest.mark.parametrize("target", [0, 1.01, -1, float("nan"), True, "0.5"])
def test_budgets_lie_between_0_and_1(target: object) -> None:
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got"):
        Budget(target)


def test_what_cannot_be_counted_is_refused() -> None:
    stack = Stack.of(nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Bilinear(8, 8, 8)) for _ in range(2)))
    with pytest.raises(ValueError, match=r"Sequential has 1 with parameters \[8, 8, 8\], of which a token uses some"):
        Costs.of(stack, stack.units("block"), context=3)
    with pytest.raises(ValueError, match="context must be a number of at least 1, got 0"):
        Costs.of(stack, stack.units("block"), context=0)

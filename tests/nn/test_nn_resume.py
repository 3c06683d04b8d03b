"""Law: runs on tiles resume bit for bit, compile twice, and notice hands that reach in between."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tiles_cases import (
    BLOCK,
    SETTINGS,
    Method,
    backward,
    batch,
    make,
    steps,
    tile_masks,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gossamer.nn import BlockSparseLinear
from gossamer.pattern import Pattern
from gossamer.training import RigL


def snapshot(net: nn.Module, opt: torch.optim.Optimizer, method: Method) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict(), "method": method.state_dict()}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("order", [("method", "net", "opt"), ("net", "opt", "method"), ("opt", "method", "net")])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, order: tuple[str, ...]) -> None:
    options = {"mutation": (0.3, 0.0), "mutation_ends": (0.5,), "soft": True} if name == "mest" else {}
    straight = make("adamw", name=name, **options)
    steps(straight[0], straight[1], 0, 24)
    parts, done = make("adamw", name=name, **options), 0
    for stop in (7, 8, 24):  # before an update, right after one
        steps(parts[0], parts[1], done, stop)
        saved = snapshot(*parts)
        parts = make("adamw", name=name, **options)
        steps(parts[0], parts[1], 50, 55)  # what the new objects did before does not matter
        for part in order:
            dict(zip(("net", "opt", "method"), parts, strict=True))[part].load_state_dict(saved[part])
        done = stop
    assert same(snapshot(*straight), snapshot(*parts))


def test_a_state_without_its_network_is_noticed() -> None:
    net, opt, method = make()
    steps(net, opt, 0, 9)
    saved = method.state_dict()
    net, opt, method = make()
    method.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="load the states of network and method together"):
        steps(net, opt, 9, 10)


def test_tiles_changed_by_hand_are_noticed() -> None:
    net, opt, _ = make()
    steps(net, opt, 0, 1)
    tiles = net[0].pattern.to_tile_mask().flip(0)
    net[0].update_pattern(Pattern.from_tile_mask(tiles, net[0].tile, shape=net[0].shape))
    with pytest.raises(RuntimeError, match="leave update_pattern to the method"):
        steps(net, opt, 1, 2)


def test_an_average_follows_the_tiles() -> None:
    net, opt, method = make("adamw", name="set", update_every=1)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    dense: list[Tensor] = []
    for t in range(8):
        steps(net, opt, t, t + 1)
        method.apply_to(average)
        average.update_parameters(net)
        weight, mask = net[0].to_dense().detach(), net[0].pattern.to_mask()
        dense.append(weight if not dense else (dense[-1] + weight) / 2 * mask)
        # lerp and a mean round differently
        torch.testing.assert_close(average.module[0].to_dense(), dense[-1], rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"at 0.values, expected BlockSparseLinear"):
        method.apply_to(nn.Sequential(nn.Linear(37, 50)))


def test_compiled_training_has_two_graphs() -> None:
    """One for usual steps and one for the steps of updates, however many updates there are."""
    torch._dynamo.reset()
    runs = []
    for wrap in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(BlockSparseLinear(37, 50, block=BLOCK, density=0.4), nn.Tanh(), nn.Linear(50, 5)).double()
        counter = CompileCounterWithBackend("aot_eager")
        model = torch.compile(net, backend=counter, fullgraph=True) if wrap else net
        opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"exclude": ["2.weight"], "distribution": "uniform", "update_every": 3}
        method = RigL(model, opt, density=0.4, total_steps=60, **options)
        counts = []
        for t in range(40):
            opt.zero_grad()
            backward(model, *batch(t))
            opt.step()
            counts.append(counter.frame_count)
        runs.append((net, method))
    assert counts == [1] * 2 + [2] * 38 and len(method.history) >= 12
    for a, b in zip(*(tile_masks(method) for _, method in runs), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(runs[0][0][0].values, runs[1][0][0].values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("replace", [False, True])
def test_replaced_steps(replace: bool) -> None:
    net, opt, method = make(replace_step=replace)
    steps(net, opt, 0, 3)
    before = net[0].to_dense().detach()
    steps(net, opt, 3, 4)
    assert len(method.history) == 1
    kept = (before != 0) & net[0].pattern.to_mask()
    assert torch.equal(net[0].to_dense()[kept], before[kept]) == replace

"""Law: compaction in the middle of training changes nothing but the cost.

A masked run (dead channels held at zero by masks) and a run compacted at the same step, with its optimizer state
sliced, stay within 1e-9 in float64 for the next 20 steps: parameters, optimizer state, BatchNorm statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compaction_nets import NETS
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import gossamer as gs
from gossamer.compaction import ChannelGraph, Kept, shrink_, zero_channels_
from gossamer.compaction.optimizer import sliced

# A convolution bias before BatchNorm has a gradient of zero up to rounding. Adaptive methods divide that noise by its
# own size: eps has to stay well above it (1e-17), or the two runs differ by noise that means nothing.
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "nesterov": lambda p: SGD(p, 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: AdamW(p, 1e-2, weight_decay=1e-2),
    "amsgrad": lambda p: Adam(p, 1e-2, amsgrad=True, foreach=True),
    "rmsprop": lambda p: RMSprop(p, 1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: Adagrad(p, 1e-2, eps=1e-6),
}


def hold_at_zero(model: nn.Module, graph: ChannelGraph, keep: dict[str, Tensor], optimizer: Any) -> None:
    """What a training method's masks do after every step: dead channels, and their momentum, are exactly zero."""
    zero_channels_(model, graph, keep)
    tensors = dict(model.named_parameters())
    for name, mask in keep.items():
        for member in graph.group(name).members:
            if member.tensor in tensors:
                for value in optimizer.state.get(tensors[member.tensor], {}).values():
                    if isinstance(value, Tensor) and value.shape == tensors[member.tensor].shape:
                        value.index_fill_(member.axis, member.index[~mask].flatten(), 0)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def assert_follows(masked: nn.Module, small: nn.Module, kept: Kept) -> None:
    state = small.state_dict()
    for name, value in masked.state_dict().items():
        expected = sliced(value, kept.get(name, {}))
        assert state[name].shape == expected.shape
        torch.testing.assert_close(state[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def masked_run(name: str, make: Callable, steps: int) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = NETS[name].build().double().train()
    optimizer = make(model.parameters())
    x = NETS[name].inputs()
    target = torch.randn_like(model(x).detach())
    for _ in range(3):
        step(model, optimizer, x + 0.1 * torch.randn_like(x), target)
    graph = ChannelGraph.build(model, x)
    keep = {group.name: torch.arange(group.channels) % 3 != 1 for group in graph.removable}
    hold_at_zero(model, graph, keep, optimizer)
    data = [(x + 0.1 * torch.randn_like(x), target) for _ in range(steps)]
    return model, optimizer, graph, keep, data, x


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *(("residual", optimizer) for optimizer in OPTIMIZERS),
        *((name, optimizer) for name in ("grouped 4", "dense", "vit") for optimizer in ("nesterov", "adamw")),
    ],
)
def test_twenty_steps_after_shrinking_in_place(name: str, optimizer: str) -> None:
    model, optimizer, graph, keep, data, x = masked_run(name, OPTIMIZERS[optimizer], 20)
    small = copy.deepcopy(model)
    twin = copy.deepcopy(optimizer, {id(p): q for p, q in zip(model.parameters(), small.parameters(), strict=True)})
    kept = shrink_(small, graph, keep, twin)
    for batch in data:
        step(model, optimizer, *batch)
        hold_at_zero(model, graph, keep, optimizer)
        step(small, twin, *batch)
    assert_follows(model, small, kept)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    model.eval(), small.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


def test_twenty_steps_after_compact_with_its_optimizer() -> None:
    model, optimizer, graph, keep, data, x = masked_run("residual", OPTIMIZERS["adamw"], 20)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("the copied optimizer runs the original's hooks"))
    result = gs.compact(model, x, optimizer=optimizer, round_to=None, check_latency=False)
    optimizer._optimizer_step_post_hooks.clear()
    assert result.model.training and type(result.optimizer) is AdamW
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {
        name: widths["after"] for name, widths in result.report["channels"].items()
    }
    assert {id(p) for group in result.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in result.model.parameters()
    }
    for batch in data:
        step(model, optimizer, *batch)
        hold_at_zero(model, graph, keep, optimizer)
        step(result.model, result.optimizer, *batch)
    assert_follows(model, result.model, result.kept)


def test_a_dead_channel_that_would_return_in_train_mode_is_not_dead() -> None:
    """x = 0 and beta = 0, but a running mean of 1: zero under batch statistics, a constant in eval mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[1].running_mean[0] = 1.0
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = ChannelGraph.build(net, x)
    for training in (True, False):
        assert gs.compaction.dead(graph, net, training=training)["0"].tolist() == [False, True, False, False]
    with torch.no_grad():  # gamma (0 - 1) / sqrt(1 + eps) + beta = 0 holds in eval mode only
        net[1].eps = 0.0
        net[1].bias[0] = net[1].weight[0]
    assert gs.compaction.dead(graph_of(net, x), net, training=False)["0"].tolist() == [True, True, False, False]
    assert gs.compaction.dead(graph_of(net, x), net, training=True)["0"].tolist() == [False, True, False, False]


def graph_of(net: nn.Module, x: Tensor) -> ChannelGraph:
    return ChannelGraph.build(net, x)

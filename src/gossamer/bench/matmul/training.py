"""One step of training a multilayer perceptron whose weights are sparse: forward, backward and optimizer.

The dense step is the same network with `nn.Linear`, whichever of torch, the fastest dense engines and inductor runs it
fastest. Updates of the pattern are timed apart and spread over the steps between them. SparseLab is the one living
library that trains sparse on CPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

import gossamer as gs
from gossamer import extras
from gossamer.bench.cells import CONTROL, milliseconds, ratio, value
from gossamer.bench.dense import choose, settle
from gossamer.bench.matmul.operands import normal
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.step import training_step

DENSE, OURS, THEIRS = "dense", "gossamer", "SparseLab"
DENSES = ("torch", "engines", "inductor")
WIDTHS, BATCH, DENSITY, UPDATE_EVERY = (1024, 4096, 1024), 256, 0.1, 100


def _network(layer: Callable[[int, int], nn.Module], widths: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(layer(widths[0], widths[1]), nn.ReLU(), layer(widths[1], widths[2]))


class Fastest(nn.Linear):
    """torch's layer by the fastest dense engine, forward and backward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return gs.ops.dense.linear(input, self.weight, self.bias)


def _sparselab(widths: tuple[int, ...]) -> nn.Module | None:
    sparselab = extras.compared("sparselab", "SparseLab", "bench")
    return (
        None if sparselab is None else _network(lambda i, o: sparselab.SparseLinear(i, o, sparsity=1 - DENSITY), widths)
    )


def _networks(block: int, widths: tuple[int, ...], settings: Settings) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    nets: dict[str, nn.Module] = {
        "torch": _network(nn.Linear, widths),
        "engines": _network(Fastest, widths),
        OURS: _network(lambda i, o: gs.nn.BlockSparseLinear(i, o, block=block, density=DENSITY), widths),
    }
    if settings.device == "cpu" and not settings.quick and shutil.which("c++") is not None:
        nets["inductor"] = cast(nn.Module, torch.compile(_network(nn.Linear, widths)))
    if block == 1 and settings.device == "cpu" and (theirs := _sparselab(widths)) is not None:
        nets[THEIRS] = theirs
    return {name: net.to(settings.device) for name, net in nets.items()}


def rows(settings: Settings) -> Iterator[Row]:
    """One row per block size. RigL is attached to ours, so its hooks are in the step; its update is timed beside it."""
    widths, batch = ((64, 128, 64), 32) if settings.quick else (WIDTHS, BATCH)
    x, y = normal(batch, widths[0], settings, seed=1).float(), normal(batch, widths[2], settings, seed=2).float()
    for block in (1, 4, 16, 32):
        calls: dict[str, Callable[[], Any]] = {}
        for name, net in _networks(block, widths, settings).items():
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
            if name == OURS:
                gs.training.RigL(net, optimizer, density=DENSITY, total_steps=10**9, update_every=10**8, seed=0)
            calls[name] = training_step(net, optimizer, x, y, nn.functional.mse_loss)
        found = {name: calls.pop(name) for name in DENSES if name in calls}
        settle(settings, found["engines"])
        operations = 6 * batch * (widths[0] * widths[1] + widths[1] * widths[2])
        facts = choose(found, calls, DENSE, settings, operations)
        run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, seconds=20)
        yield {"block": block, "density": DENSITY, "batch": batch, "widths": list(widths), **facts, **run.to_dict()}


COLUMNS = (
    ("block", value("block")), ("density", value("density", ".3g")), ("dense step ms", milliseconds(digits=1)),
    (OURS, ratio(OURS)), (THEIRS, lambda row: ratio(THEIRS)(row) if row["block"] == 1 else ""), CONTROL,
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))

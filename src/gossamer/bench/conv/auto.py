"""A layer's whole step with `skip="auto"`: does the choice cost anything where there is nothing to skip?

Forward and backward of one convolution through autograd, operands and weights as in training: x and dy hold the same
share of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench.cells import CONTROL, Rows, lines, milliseconds, ratio, short, value
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS, Calls, against, best_of
from gossamer.bench.conv.layers import Layer, chosen, operand
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table

AUTO, ALWAYS = "auto", "skip always"
LEARN = 30  # calls before the clock starts: the tuner's trial takes these


def _step(conv: Callable[[Tensor, Tensor], Tensor], x: Tensor, dy: Tensor, weight: Tensor) -> Callable[[], Any]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return lambda: torch.autograd.grad(conv(x, weight), (x, weight), dy)


def candidates(layer: Layer, batch: int, zeros: float) -> Calls:
    """A step by torch in both formats, by ours choosing, and by ours always skipping."""
    x = operand(batch, layer.inputs, layer.side, zeros, "random", seed=1)
    dy = operand(batch, layer.outputs, layer.out_side, zeros, "random", seed=2)
    weight = layer.weight()
    last = weight.contiguous(memory_format=torch.channels_last)

    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    torchs = partial(F.conv2d, **geometry)
    auto = partial(gs.ops.conv2d, **geometry, site=gs.planner.Site(layer.name))
    always = partial(gs.ops.conv2d, **geometry, skip="input")
    return {
        CHANNELS_LAST: _step(torchs, x, dy, last),
        CONTIGUOUS: _step(torchs, x.contiguous(), dy.contiguous(), weight),
        AUTO: _step(auto, x, dy, last),
        ALWAYS: _step(always, x, dy, last),
    }


def rows(settings: Settings) -> Iterator[Row]:
    """One row per layer and share of zeros."""
    for layer in chosen(settings):
        best = ""
        for zeros in (0.0, 0.9) if settings.quick else (0.0, 0.5, 0.9):
            calls = candidates(layer, 2 if settings.quick else 16, zeros)
            best = best or best_of(calls, (CHANNELS_LAST, CONTIGUOUS), settings)
            for _ in range(2 if settings.quick else LEARN):
                calls[AUTO]()
            calls = {name: calls[name] for name in (best, AUTO, ALWAYS)}
            yield {"layer": layer.name, "zeros": zeros, **against(best, calls, settings, seconds=1.5)}


COLUMNS = (
    ("layer", value("layer")), ("zeros", value("zeros", ".0%")), ("best torch ms", milliseconds()),
    ('`skip="auto"`', ratio(AUTO)), ('`skip="input"`', short(ALWAYS)), CONTROL,
)  # fmt: skip


def brief(rows: Rows) -> str:
    """A layer a line, a share of zeros a column."""
    found = {(row["layer"], row["zeros"]): short(AUTO)(row) for row in rows}
    shares = sorted({zeros for _, zeros in found})
    body = [
        [layer, *(found[layer, zeros] for zeros in shares)] for layer in dict.fromkeys(row["layer"] for row in rows)
    ]
    return lines(["layer", *(f"{zeros:.0%} zeros" for zeros in shares)], body)


SECTION = Section(rows, Table(COLUMNS), {"brief": Table(brief, MEDIANS)}, on_gpu=False)

"""A Linear on 2048 rows whose operand holds zeros: the three products of a step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gossamer.bench.conv.compare import Calls, against, crossover
from gossamer.bench.conv.layers import ZEROS, operand
from gossamer.bench.conv.passes import KEPT, OF_DY, OF_X, PACKING, PASSES, curves, in_training
from gossamer.bench.dense import use_fastest
from gossamer.bench.section import Rows, Section, Settings, Table
from gossamer.kernels.cpu.skip_conv import skip_conv, skip_pack
from gossamer.kernels.cpu.skip_conv_weight import skip_conv_weight

DENSE = "dense"  # the fastest engine; oneDNN and MKL pack the weight in forward only, where they may keep it
SHAPES = ((1024, 1024), (768, 3072), (3072, 768))  # features in, features out


def _rows(count: int, features: int, zeros: float, seed: int) -> Tensor:
    return operand(count, features, 1, zeros, "random", seed).flatten(1).contiguous()


def candidates(which: str, count: int, inputs: int, outputs: int, zeros: float) -> tuple[Calls, Tensor, Tensor]:
    """The dense product, and ours with the weights packed before the call and in it; and the operands."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3)) / 32
    x = _rows(count, inputs, zeros if which != "input" else 0.0, seed=1)
    dy = _rows(count, outputs, zeros if which != "forward" else 0.0, seed=2)
    one, none = (1, 1), (0, 0)
    if which == "weight":
        image = x.view(1, 1, count, inputs), dy.view(1, 1, count, outputs)

        def gradient(side: Literal["x", "dy"]) -> Tensor:
            return skip_conv_weight(*image, None, one, one, none, one, side)[0].view(outputs, inputs)

        return (
            {
                DENSE: lambda: dy.t() @ x,
                OF_X: lambda: gradient("x"),
                OF_DY: lambda: gradient("dy"),
            },
            dy.t(),
            x,
        )
    left, right, out = (x, weight.t(), outputs) if which == "forward" else (dy, weight, inputs)
    source = right.t()[:, :, None, None]

    def run(packed: Tensor) -> Tensor:
        image = left.view(1, 1, *left.shape)
        y, _, _ = skip_conv(
            image, packed, None, None, out, one, one, none, one, which == "input", (1, count), False
        )  # fmt: skip
        return y.view(count, out)

    packed = skip_pack(source)
    return (
        {
            DENSE: lambda: left @ right,
            KEPT: lambda: run(packed),
            PACKING: lambda: run(skip_pack(source)),
        },
        left,
        right,
    )


def rows(settings: Settings) -> Rows:
    """One row per shape, pass and share of zeros, then one with the crossover."""
    count, shapes = (64, ((64, 96),)) if settings.quick else (2048, SHAPES if settings.full else SHAPES[:1])
    out: Rows = []
    with torch.inference_mode():
        for inputs, outputs in shapes:
            for which in PASSES:
                facts = {"layer": f"{count} x {inputs}->{outputs}", "pass": which}
                line = []
                for zeros in (0.0, 0.9) if settings.quick else ZEROS:
                    calls, left, right = candidates(which, count, inputs, outputs, zeros)
                    constant: Literal["b"] | None = "b" if which == "forward" else None
                    engines = use_fastest(calls, DENSE, settings, left, right, constant)
                    found = against(DENSE, calls, settings, seconds=1.5)
                    out.append({**facts, "masks": "random", "zeros": zeros, **engines, **found})
                    ours = in_training(which)
                    line.append((zeros, next(e["ratio"] for e in found["rows"] if e["name"] == ours)))
                out.append({**facts, "crossover": crossover(line)})
    return out


SECTION = Section(rows, Table(curves), on_gpu=False)

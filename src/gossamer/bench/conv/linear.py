"""A Linear on 2048 rows whose operand holds zeros: the three products of a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from gossamer.bench.conv.compare import Calls, against
from gossamer.bench.conv.layers import ZEROS, operand
from gossamer.bench.conv.passes import KEPT, OF_DY, OF_X, PACKING, PASSES, crossing, curves
from gossamer.bench.dense import use_fastest
from gossamer.bench.section import Row, Section, Settings, Table
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

        return {DENSE: lambda: dy.t() @ x, OF_X: lambda: gradient("x"), OF_DY: lambda: gradient("dy")}, dy.t(), x
    left, right, out = (x, weight.t(), outputs) if which == "forward" else (dy, weight, inputs)
    source = right.t()[:, :, None, None]

    def run(packed: Tensor) -> Tensor:
        image = left.view(1, 1, *left.shape)
        y, _, _ = skip_conv(
            image, packed, None, None, out, one, one, none, one, which == "input", (1, count), False
        )  # fmt: skip
        return y.view(count, out)

    packed = skip_pack(source)
    calls = {DENSE: lambda: left @ right, KEPT: lambda: run(packed), PACKING: lambda: run(skip_pack(source))}
    return calls, left, right


@torch.inference_mode()
def rows(settings: Settings) -> Iterator[Row]:
    """One row per shape, pass and share of zeros, then one with the crossover."""
    count, shapes = (64, ((64, 96),)) if settings.quick else (2048, SHAPES if settings.full else SHAPES[:1])
    for (inputs, outputs), which in product(shapes, PASSES):
        facts = {"layer": f"{count} x {inputs}->{outputs}", "pass": which}
        constant: Literal["b"] | None = "b" if which == "forward" else None
        line = []
        for zeros in (0.0, 0.9) if settings.quick else ZEROS:
            calls, left, right = candidates(which, count, inputs, outputs, zeros)
            engines = use_fastest(calls, DENSE, settings, left, right, constant)
            found = against(DENSE, calls, settings, seconds=1.5)
            line.append({**facts, "masks": "random", "zeros": zeros, **engines, **found})
            yield line[-1]
        yield {**facts, "crossover": crossing(line, which)}


SECTION = Section(rows, Table(curves), on_gpu=False)

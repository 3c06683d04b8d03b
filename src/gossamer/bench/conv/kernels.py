"""One layer, one pass, one share of zeros: our kernels against torch's two memory formats and onnxruntime.

Every candidate gets its operands in its own layout; the lines "converting" bring them there and the result back in the
call. "ours" has packed the weights before, as in inference; "ours, packing" packs them
in the call, as a training step must. The weight gradient has no weights to pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.bench.cells import Column, milliseconds, table, value
from gossamer.bench.conv import onnx
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS, Calls, against, best_of
from gossamer.bench.conv.layers import ZEROS, Layer, chosen, operand
from gossamer.bench.conv.passes import KEPT, OF_DY, OF_X, PACKING, PASSES, crossing, curves, in_training
from gossamer.bench.section import Row, Rows, Section, Settings, Table
from gossamer.kernels.cpu.skip_conv import skip_conv, skip_pack
from gossamer.kernels.cpu.skip_conv_weight import skip_conv_weight

ONNX = "onnxruntime"
CONVERTING = ("torch converting", "ours converting")
UNEVEN = (0.5, 0.9)  # where masks as after a ReLU are measured too


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _geometry(layer: Layer) -> tuple[tuple[int, int], ...]:
    """kernel, stride, padding, dilation."""
    return (layer.kernel,) * 2, (layer.stride,) * 2, (layer.padding,) * 2, (1, 1)


def _gradient(layer: Layer, dy: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    _, stride, padding, dilation = _geometry(layer)
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, wanted
    )[which]  # fmt: skip


def _ours(layer: Layer, which: str, x: Tensor, dy: Tensor, weight: Tensor) -> Calls:
    kernel, stride, padding, dilation = _geometry(layer)
    x, dy = _nhwc(x), _nhwc(dy)
    if which == "weight":

        def gradient(side: Literal["x", "dy"]) -> Tensor:
            return skip_conv_weight(x, dy, None, kernel, stride, padding, dilation, side, channels_last=True)[0]

        return {OF_X: lambda: gradient("x"), OF_DY: lambda: gradient("dy")}
    forward = which == "forward"
    operand, out, side = (x, layer.outputs, layer.out_side) if forward else (dy, layer.inputs, layer.side)
    source = weight if forward else weight.transpose(0, 1)

    def run(packed: Tensor) -> Tensor:
        y, _, _ = skip_conv(
            operand, packed, None, None, out, kernel, stride, padding, dilation, not forward, (side, side), False
        )  # fmt: skip
        return y.permute(0, 3, 1, 2)

    packed = skip_pack(source)
    return {KEPT: lambda: run(packed), PACKING: lambda: run(skip_pack(source))}


def _torch(layer: Layer, which: str, x: Tensor, dy: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    if which == "forward":
        return lambda: F.conv2d(x, weight, stride=layer.stride, padding=layer.padding)
    return lambda: _gradient(layer, dy, x, weight, 0 if which == "input" else 1)


def converting(layer: Layer, which: str, batch: int, zeros: float, best: str) -> Calls:
    """For a caller whose tensors are in the other format: there, the pass, and back, all in the call."""
    x = operand(batch, layer.inputs, layer.side, zeros if which != "input" else 0.0, "random", seed=1)
    dy = operand(batch, layer.outputs, layer.out_side, zeros if which != "forward" else 0.0, "random", seed=2)
    weight = layer.weight()

    def call(there: torch.memory_format, run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        here = torch.contiguous_format if there == torch.channels_last else torch.channels_last
        held, asked = x.contiguous(memory_format=here), dy.contiguous(memory_format=here)

        def through() -> Tensor:
            # The gradient by x wants of x its shape only, and the forward pass no dy.
            a = x if which == "input" else held.contiguous(memory_format=there)
            b = dy if which == "forward" else asked.contiguous(memory_format=there)
            y = run(a, b)
            return y if which == "weight" else y.contiguous(memory_format=here)

        return through

    theirs = torch.channels_last if best == CHANNELS_LAST else torch.contiguous_format
    in_theirs = weight.contiguous(memory_format=theirs)
    ours = in_training(which)
    return {
        CONVERTING[0]: call(theirs, lambda a, b: _torch(layer, which, a, b, in_theirs)()),
        CONVERTING[1]: call(torch.channels_last, lambda a, b: _ours(layer, which, a, b, weight)[ours]()),
    }


def candidates(layer: Layer, which: str, batch: int, zeros: float, masks: str) -> Calls:
    """Everything but the converting line. Zeros are in what the pass may skip: x, dy, or both for the weights."""
    x = operand(batch, layer.inputs, layer.side, zeros if which != "input" else 0.0, masks, seed=1)
    dy = operand(batch, layer.outputs, layer.out_side, zeros if which != "forward" else 0.0, masks, seed=2)
    weight = layer.weight()
    calls: Calls = {
        CHANNELS_LAST: _torch(layer, which, x, dy, weight.contiguous(memory_format=torch.channels_last)),
        CONTIGUOUS: _torch(layer, which, x.contiguous(), dy.contiguous(), weight),
        **_ours(layer, which, x, dy, weight),
    }
    if which == "forward" and (theirs := onnx.convolution(layer, weight)) is not None:
        plain = x.contiguous()
        calls[ONNX] = lambda: theirs(plain)
    return calls


def _points(settings: Settings) -> list[tuple[str, float]]:
    random = (0.0, 0.5, 0.9) if settings.quick else ZEROS
    uneven = (0.5,) if settings.quick else ZEROS if settings.full else UNEVEN
    return [*(("random", zeros) for zeros in random), *(("uneven", zeros) for zeros in uneven)]


def curve(layer: Layer, which: str, batch: int, settings: Settings) -> Rows:
    """One row per kind of masks and share of zeros, then one with the crossover of random masks."""
    out: Rows = []
    facts = {"layer": layer.name, "pass": which, "batch": batch}
    best = ""
    for masks, zeros in _points(settings):
        calls = candidates(layer, which, batch, zeros, masks)
        best = best or best_of(calls, (CHANNELS_LAST, CONTIGUOUS), settings)
        if zeros > 0:  # what does not skip is as fast as it was
            calls = {name: call for name, call in calls.items() if name == best or name.startswith("ours")}
        if (masks, zeros) == ("random", 0.5):
            calls.update(converting(layer, which, batch, zeros, best))
        out.append({**facts, "masks": masks, "zeros": zeros, **against(best, calls, settings, seconds=0.8)})
    found = crossing((row for row in out if row["masks"] == "random"), which)
    return [*out, {**facts, "best": best, "crossover": found}]


@torch.inference_mode()
def rows(settings: Settings) -> Iterator[Row]:
    """Batch 16; with `full` also batch 1."""
    batches = (2,) if settings.quick else (16, 1) if settings.full else (16,)
    for batch, layer, which in product(batches, chosen(settings), PASSES):
        yield from curve(layer, which, batch, settings)


def baselines(rows: Rows) -> str:
    """Milliseconds of everybody where there is no zero, and of callers who hold the other layout at half zeros."""
    keyed = {
        (row["layer"], row["pass"], row.get("batch"), row["zeros"]): row for row in rows if row.get("masks") == "random"
    }
    found = []
    for (*where, zeros), row in keyed.items():
        half = keyed.get((*where, 0.5))
        if zeros == 0.0 and half is not None:
            found.append({**row, "half": half})

    def converting(name: str) -> Column:
        return f"{name}, 50 %", lambda row: milliseconds(name)(row["half"])

    return table(
        found,
        [
            ("layer", value("layer")), ("pass", value("pass")),
            *((name, milliseconds(name)) for name in (CHANNELS_LAST, CONTIGUOUS, ONNX)),
            ("ours", lambda row: milliseconds(in_training(row["pass"]))(row)), *map(converting, CONVERTING),
        ],
    )  # fmt: skip


SECTION = Section(rows, Table(curves), {"baselines": Table(baselines)}, on_gpu=False)

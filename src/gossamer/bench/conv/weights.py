"""What it costs to use the weight as the user holds it: packing it in every call, and torch's copy of another order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

import gossamer as gs
from gossamer.bench.cells import CONTROL, Cell, Column, milliseconds, ratio, table, value
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS, Calls, against
from gossamer.bench.conv.layers import Layer, chosen, operand
from gossamer.bench.section import Row, Rows, Section, Settings, Table

KEPT, PACKED = "pack kept", "packed in the call"
ZEROS = (0.5, 0.9)
BATCHES = (1, 16)


def skipping(layer: Layer, batch: int, zeros: float) -> Calls:
    """A call that skips, with and without a kept pack."""
    x, weight = operand(batch, layer.inputs, layer.side, zeros, "uneven", seed=1), layer.weight()

    def run(keep: bool) -> torch.Tensor:
        return gs.ops.conv2d(x, weight, None, layer.stride, layer.padding, skip="input", keep_packed=keep)

    return {KEPT: lambda: run(True), PACKED: lambda: run(False)}


def dense(layer: Layer, batch: int) -> Calls:
    """torch's convolution of an input in channels_last, the weight in either order."""
    x, weight = operand(batch, layer.inputs, layer.side, 0.0, "random", seed=1), layer.weight()
    last = weight.contiguous(memory_format=torch.channels_last)
    return {
        CHANNELS_LAST: lambda: torch.conv2d(x, last, None, layer.stride, layer.padding),
        CONTIGUOUS: lambda: torch.conv2d(x, weight, None, layer.stride, layer.padding),
    }


@torch.no_grad()  # and not inference mode, whose tensors have no version to keep a pack for
def rows(settings: Settings) -> Iterator[Row]:
    """One row per layer, batch and share of zeros, and one per layer and batch for torch."""
    for layer, batch in product(chosen(settings), (1,) if settings.quick else BATCHES):
        facts = {"layer": layer.name, "batch": batch}
        for zeros in ZEROS:
            yield {**facts, "zeros": zeros, **against(KEPT, skipping(layer, batch, zeros), settings, seconds=1.0)}
        yield {**facts, **against(CHANNELS_LAST, dense(layer, batch), settings, seconds=1.0)}


def weights(rows: Rows) -> str:
    """One line per layer and batch, from its three rows."""
    per = len(ZEROS) + 1
    found = [{**rows[i], "three": rows[i : i + per]} for i in range(0, len(rows), per)]

    def of(number: int, head: str, cell: Cell) -> Column:
        return head, lambda row: cell(row["three"][number])

    columns: list[Column] = [("layer", value("layer")), ("batch", value("batch"))]
    for number, zeros in enumerate(ZEROS):
        columns.append(of(number, f"{zeros:.0%} zeros, {KEPT} ms".replace("%", " %"), milliseconds(KEPT)))
        columns.append(of(number, PACKED, ratio(PACKED)))
    columns.append(of(-1, "dense, weight in channels_last ms", milliseconds(CHANNELS_LAST)))
    columns.append(of(-1, "weight contiguous", ratio(CONTIGUOUS)))
    head, control = CONTROL
    return table(found, [*columns, (head, lambda row: " ".join(map(control, row["three"])))])


SECTION = Section(rows, Table(weights), on_gpu=False)

"""Images from one order of memory to the other, by torch and by ours, into new memory and into what is there already.

The kernels of convolutions read channels_last, so a layer that skips on contiguous images does both in each call.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.ops.skipping.memory_format import LAST, in_format

SHAPES = ((16, 64, 112, 112), (16, 256, 56, 56), (32, 512, 14, 14))
ORDERS = {"to channels_last": LAST, "to contiguous": torch.contiguous_format}
TORCH, PLACE, COPY, OURS = "torch", "torch, into memory that is there", "a plain copy there", "gossamer"


def rows(settings: Settings) -> Iterator[Row]:
    """One row per shape and direction; ratios are over torch's own conversion."""
    for shape in ((2, 8, 16, 16),) if settings.quick else SHAPES:
        for name, order in ORDERS.items():
            x = torch.randn(shape).contiguous(memory_format=torch.contiguous_format if order == LAST else LAST)
            there, same = torch.empty(shape).contiguous(memory_format=order), torch.empty_like(x)
            calls = {
                TORCH: lambda x=x, order=order: x.contiguous(memory_format=order),
                PLACE: lambda x=x, there=there: there.copy_(x),
                COPY: lambda x=x, same=same: same.copy_(x),
                OURS: lambda x=x, order=order: in_format(x, order),
            }
            run = gs.measure.interleave(calls, baseline=TORCH, reps=settings.reps, seconds=8.0)
            yield {"images": " x ".join(map(str, shape)), "order": name, "mb": x.nbytes / 1e6, **run.to_dict()}


SECTION = Section(
    rows,
    Table([
        ("images", value("images")), ("", value("order")), ("MB", value("mb", ".0f")),
        ("torch ms", milliseconds(TORCH)),
        *((name, ratio(name)) for name in (OURS, PLACE, COPY)), CONTROL,
    ]),
    on_gpu=False,
)  # fmt: skip

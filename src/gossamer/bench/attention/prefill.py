"""Attention of a whole prompt: dense, with half of the heads streaming, and stored in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import gossamer as gs
from gossamer.bench.attention.layer import GROUP, HEADS, WIDTH, Layer, lengths, queries, torch_attention
from gossamer.bench.cells import CONTROL, milliseconds, ratio, short, value
from gossamer.bench.dense import Call
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.ops.paged.pool import Stored

SINK, WINDOW = 128, 2048
STORED: tuple[Stored, ...] = ("float32", "bfloat16", "int8")
BASELINE = "torch float32"


def half_streaming(layer: Layer) -> Call:
    """Half of the heads see all, the others the first and the last tokens; each half in a pool of its own."""
    half, q = HEADS // 2, queries(layer.length)
    (dense, batch), (streaming, other) = (layer.pool("float32", heads) for heads in (slice(half), slice(half, HEADS)))
    mine, others = q[:, : half * GROUP].contiguous(), q[:, half * GROUP :].contiguous()

    def attend() -> None:
        gs.ops.page_attention(mine, dense, batch, group=GROUP)
        gs.ops.page_attention(others, streaming, other, group=GROUP, window=WINDOW, sink=SINK)

    return attend


def rows(settings: Settings) -> Iterator[Row]:
    for length in lengths(settings, 4_096, 16_384):
        layer, q = Layer.drawn(length), queries(length)
        keys, values = layer.keys, layer.values
        calls: dict[str, Call] = {BASELINE: partial(torch_attention, q, keys, values)}
        calls["torch bfloat16"] = partial(torch_attention, q.bfloat16(), keys.bfloat16(), values.bfloat16())
        for stored in STORED:
            pool, batch = layer.pool(stored)
            calls[stored] = partial(gs.ops.page_attention, q, pool, batch, group=GROUP)
        calls["half streaming"] = half_streaming(layer)
        run = gs.measure.interleave(calls, baseline=BASELINE, reps=min(settings.reps, 5), warmup=1, seconds=60)
        yield {"length": length, "heads": HEADS * GROUP, "key heads": HEADS, "width": WIDTH, **run.to_dict()}


COLUMNS = (
    ("prompt", value("length", ",")), ("torch float32 ms", milliseconds(digits=0)),
    *((name, ratio(name)) for name in ("torch bfloat16", *STORED, "half streaming")), CONTROL,
)  # fmt: skip
BRIEF = (
    ("prompt", value("length", ",")), ("torch ms", milliseconds(digits=0)),
    *((name, short(name)) for name in ("torch bfloat16", "float32", "bfloat16", "half streaming")),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)

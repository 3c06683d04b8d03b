"""One token's attention over all that came before it: dense, and over a budget of pages that its query chose.

"keys" and "min/max" are what a layer does with half of its heads streaming (128 sinks, the last 256) and the others
reading 4096 tokens of pages, chosen at every step by four bits of every key, or at every fourth by extremes
of 16 keys together. So all that is timed is four steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.layer import GROUP, HEADS, WIDTH, Layer, grouped, lengths, newest, queries, sdpa
from gossamer.bench.cells import CONTROL, of, ratio, short, value
from gossamer.bench.dense import Call, choose
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.ops.paged.pool import Stored
from gossamer.ops.paged.scores import PageScore

BEST = "torch"
STORED: tuple[Stored, ...] = ("float32", "bfloat16", "int8")
BUDGET, STEPS, SINK, WINDOW = 64, 4, 128, 256  # pages, steps that are timed, tokens, tokens
RANKED: dict[str, tuple[PageScore, int]] = {"keys": ("keys", 1), "min/max": ("extremes", 4)}
"""How pages are ranked, and for how many steps."""
FEWER: tuple[Stored, ...] = ("bfloat16", "int8")


def rivals(layer: Layer, q: Tensor) -> dict[str, Call]:
    """Torch's ways, in both dtypes."""
    calls: dict[str, Call] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        mine, keys, values = (x.to(dtype) for x in (q, layer.keys, layer.values))
        calls[f"grouped {name}"] = partial(grouped, mine, keys, values)
        calls[f"sdpa {name}"] = partial(sdpa, mine.view(1, HEADS * GROUP, 1, WIDTH), keys, values, enable_gqa=True)
    return calls


def chosen_pages(q: Tensor, pool: gs.ops.PagePool, batch: gs.ops.Batch, by: PageScore) -> gs.Pattern:
    """The best pages of each key head, of which the first and the newest are always some."""
    columns = batch.table.shape[1]
    count = min(BUDGET, columns)
    scores = gs.ops.page_scores(q, pool, batch, by=by, group=GROUP)
    pages = gs.ops.page_choose(scores, batch, count, group=GROUP)
    return gs.Pattern(torch.arange(pool.heads + 1) * count, pages.flatten(), (pool.heads, columns), (1, 1))


def several(step: Call) -> Call:
    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


def sparse_steps(layer: Layer, q: Tensor, stored: Stored, by: PageScore, interval: int) -> Call:
    half = HEADS // 2
    chooses, other = layer.pool(stored, slice(half), by=by), layer.pool(stored, slice(half, HEADS))
    mine, others = q[:, : half * GROUP].contiguous(), q[:, half * GROUP :].contiguous()
    (dense, batch), (streaming, more) = ((pool, newest(batch)) for pool, batch in (chooses, other))

    def steps() -> None:
        for step in range(STEPS):
            if step % interval == 0:
                lists = chosen_pages(mine, dense, batch, by)
            gs.ops.page_attention(mine, dense, batch, group=GROUP, lists=lists)
            gs.ops.page_attention(others, streaming, more, group=GROUP, window=WINDOW, sink=SINK)

    return steps


def rows(settings: Settings) -> Iterator[Row]:
    q = queries(1)
    for length in lengths(settings, 4_096, 16_384, 32_768, 131_072):
        layer = Layer.drawn(length)
        calls: dict[str, Call] = {}
        engine = choose(rivals(layer, q), calls, BEST, settings, 4 * length * HEADS * GROUP * WIDTH)
        for stored in STORED:
            pool, batch = layer.pool(stored)
            calls[stored] = partial(gs.ops.page_attention, q, pool, newest(batch), group=GROUP)
        calls = {name: several(call) for name, call in calls.items()}
        calls |= {
            f"{name} {stored}": sparse_steps(layer, q, stored, *how) for name, how in RANKED.items() for stored in FEWER
        }
        run = gs.measure.interleave(calls, baseline=BEST, reps=settings.reps, warmup=1, seconds=60)
        yield {"length": length, "heads": HEADS * GROUP, "key heads": HEADS, "width": WIDTH, **engine, **run.to_dict()}


def a_step(entry: Row) -> str:
    return f"{entry['median'] / STEPS * 1e3:.1f}"


COLUMNS = (
    ("keys", value("length", ",")), ("torch ms", of(None, a_step)), ("by", value("engine")),
    *((name, ratio(name)) for name in STORED),
    *((f"{how} {name}", ratio(f"{how} {name}")) for how in RANKED for name in FEWER),
    CONTROL,
)  # fmt: skip
BRIEF = (
    ("keys", value("length", ",")), ("torch ms", of(None, a_step)),
    *((name, short(name)) for name in ("bfloat16", "int8", "keys bfloat16", "min/max bfloat16")),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)

"""One token's attention over all that came before it: dense, and over a budget of pages that its query chose.

"sparse" is what a layer does with half of its heads streaming (128 sinks, the last 256) and the others reading
4096 tokens of pages that are chosen anew every fourth step. So all that is timed is four steps.
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

BEST = "torch"
STORED: tuple[Stored, ...] = ("float32", "bfloat16", "int8")
BUDGET, INTERVAL, SINK, WINDOW = 64, 4, 128, 256  # pages, steps, tokens, tokens


def rivals(layer: Layer, q: Tensor) -> dict[str, Call]:
    """Torch's ways, in both dtypes."""
    calls: dict[str, Call] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        mine, keys, values = (x.to(dtype) for x in (q, layer.keys, layer.values))
        calls[f"grouped {name}"] = partial(grouped, mine, keys, values)
        calls[f"sdpa {name}"] = partial(sdpa, mine.view(1, HEADS * GROUP, 1, WIDTH), keys, values, enable_gqa=True)
    return calls


def chosen_pages(q: Tensor, pool: gs.ops.PagePool, batch: gs.ops.Batch) -> gs.Pattern:
    """The pages of the best score of a group, and the newest; ascending."""
    scores = gs.ops.page_scores(q, pool, batch, group=GROUP)[0].view(pool.heads, GROUP, -1).amax(1)
    last = -(-int(batch.lengths[0]) // pool.page) - 1
    scores[:, last] = torch.inf
    count = min(BUDGET, last + 1)
    pages = scores.topk(count, dim=1).indices.sort(dim=1).values.int()
    offsets = torch.arange(pool.heads + 1) * count
    return gs.Pattern(offsets, pages.flatten(), (pool.heads, scores.shape[1]), (1, 1))


def four(step: Call) -> Call:
    """As many steps as pages are chosen for."""

    def steps() -> None:
        for _ in range(INTERVAL):
            step()

    return steps


def sparse_steps(layer: Layer, q: Tensor, stored: Stored) -> Call:
    half = HEADS // 2
    (dense, batch), (streaming, other) = (layer.pool(stored, heads) for heads in (slice(half), slice(half, HEADS)))
    mine, others = q[:, : half * GROUP].contiguous(), q[:, half * GROUP :].contiguous()
    batch, other = newest(batch), newest(other)

    def steps() -> None:
        lists = chosen_pages(mine, dense, batch)
        for _ in range(INTERVAL):
            gs.ops.page_attention(mine, dense, batch, group=GROUP, lists=lists)
            gs.ops.page_attention(others, streaming, other, group=GROUP, window=WINDOW, sink=SINK)

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
        calls = {name: four(call) for name, call in calls.items()}
        calls |= {f"sparse {stored}": sparse_steps(layer, q, stored) for stored in STORED}
        run = gs.measure.interleave(calls, baseline=BEST, reps=settings.reps, warmup=1, seconds=60)
        yield {"length": length, "heads": HEADS * GROUP, "key heads": HEADS, "width": WIDTH, **engine, **run.to_dict()}


def a_step(entry: Row) -> str:
    return f"{entry['median'] / INTERVAL * 1e3:.1f}"


COLUMNS = (
    ("keys", value("length", ",")), ("torch ms", of(None, a_step)), ("by", value("engine")),
    *((name, ratio(name)) for name in STORED), *((f"sparse {name}", ratio(f"sparse {name}")) for name in STORED),
    CONTROL,
)  # fmt: skip
BRIEF = (
    ("keys", value("length", ",")), ("torch ms", of(None, a_step)),
    *((name, short(name)) for name in ("bfloat16", "int8", "sparse bfloat16")),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)

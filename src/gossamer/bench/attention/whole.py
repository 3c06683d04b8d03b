"""Decoding of whole models, one request, greedy: everything of a step is timed, the engine's own work too.

Contexts have keys that are drawn (see `steps`); weights are as they are. A call is four steps: where pages
are chosen at every fourth token, that is once. The large model and its caches take 12 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.attention.decoders import LARGE, TOY, llama, smollm2, transformers_here
from gossamer.bench.attention.llama_cpp import LlamaCpp, file_here
from gossamer.bench.attention.steps import STEPS, Steps, Transformers, engine, filled
from gossamer.bench.cells import CONTROL, Cell, Rows, ratio, table, value
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.ops.paged.pool import PAGE
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import spread
from gossamer.serving.sparsity import Sparsity

BASELINE, DENSE = "transformers", "dense"
Way = Steps | Transformers | LlamaCpp


def ways(model: Any, context: int, sparsities: dict[str, Sparsity]) -> dict[str, Way]:
    """A model's ways to decode, from the same keys."""
    calls: dict[str, Way] = {BASELINE: Transformers(model, context)}
    for name, sparsity in sparsities.items():
        mine = engine(model, sparsity, context)
        calls[name] = Steps(mine, [filled(mine, context)])
    return calls


def half(model: Any, **attributes: Any) -> Sparsity:
    """Half of the heads stream: for their time it does not matter which."""
    geometry = Geometry.of(model.config)
    return Sparsity(static=0.5, pattern=spread(len(geometry.layers), max(geometry.key_heads)), **attributes)


def compared(name: str, model: Any, context: int, calls: dict[str, Way], settings: Settings) -> Iterator[Row]:
    """A row for each way."""
    timed: dict[str, Callable[[], Any]] = dict(calls)
    run = gs.measure.interleave(timed, baseline=BASELINE, reps=settings.reps, warmup=1, seconds=60).to_dict()
    dense = next(each["median"] for each in run["rows"] if each["name"] == DENSE)
    for entry in run["rows"]:
        way = calls[entry["name"]]
        yield {
            "model": name, "context": context, "way": entry["name"], "tokens_per_second": STEPS / entry["median"],
            "over_dense": dense / entry["median"], "held": way.held(), "read": way.read(),
            "weights": way.weights(), **run,
        }  # fmt: skip


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    with torch.inference_mode():
        yield from small(settings)
        yield from large(settings)


def small(settings: Settings) -> Iterator[Row]:
    """SmolLM2 in float32."""
    loaded = smollm2(settings)
    if loaded is None:
        return
    context, budget = (256, 3 * PAGE) if settings.quick else (8000, 512)
    model = loaded.model
    calls = ways(
        model, context,
        {
            DENSE: Sparsity(), f"budget {budget}": Sparsity(token_budget=budget),
            f"budget {budget}, min/max": Sparsity(token_budget=budget, score="extremes", interval=4),
            f"budget {budget}, half streaming": half(model, token_budget=budget, sink=64 if settings.quick else 128),
        },
    )  # fmt: skip
    file = None if settings.quick else file_here()
    if file is not None:
        calls["llama.cpp, 4-bit weights"] = LlamaCpp(file, Geometry.of(model.config), context)
    yield from compared(loaded.name, model, context, calls, settings)


def large(settings: Settings) -> Iterator[Row]:
    """A billion random weights in bfloat16."""
    context, budget = (256, 3 * PAGE) if settings.quick else (65_536, 4096)
    model = llama(TOY if settings.quick else LARGE, torch.bfloat16)
    calls = ways(
        model, context,
        {
            DENSE: Sparsity(), "dense, int8": Sparsity(stored="int8"),
            f"budget {budget}": Sparsity(token_budget=budget),
            f"budget {budget}, int8": Sparsity(token_budget=budget, stored="int8"),
            f"budget {budget}, int8, half streaming": half(model, token_budget=budget, stored="int8"),
            f"budget {budget}, int8, half streaming, min/max": half(
                model, token_budget=budget, stored="int8", score="extremes", interval=4
            ),
        },
    )  # fmt: skip
    yield from compared("Llama, 1B, random", model, context, calls, settings)


def mine(row: Row) -> str:
    """The ratio of a row's own way."""
    return ratio(row["way"])(row)


def megabytes(key: str) -> Cell:
    return lambda row: f"{row[key] / 1e6:,.0f}"


COLUMNS = (
    ("model", value("model")), ("context", value("context", ",")), ("way", value("way")),
    ("tokens/s", value("tokens_per_second", ".1f")), ("over transformers", mine),
    ("over dense", value("over_dense", ".2f")),
    ("cache MB", megabytes("held")), ("MB of it read in a step", megabytes("read")),
    ("weights MB", megabytes("weights")), CONTROL,
)  # fmt: skip


def brief(rows: Rows) -> str:
    """A row for each model: a budget alone, and the least memory."""
    models = dict.fromkeys(row["model"] for row in rows)
    return table([{"ways": [row for row in rows if row["model"] == model]} for model in models], BRIEF)


def way(wanted: Callable[[str], bool]) -> Cell:
    """How much faster than transformers the first such way is, and its cache."""

    def cell(row: Row) -> str:
        found = next(each for each in row["ways"] if wanted(each["way"]))
        return f"{mine(found).split(' ')[0]}, {found['held'] / 1e6:,.0f} MB"

    return cell


BRIEF = (
    ("model", lambda row: row["ways"][0]["model"]), ("context", lambda row: f"{row['ways'][0]['context']:,}"),
    ("transformers, tokens/s", lambda row: f"{row['ways'][0]['tokens_per_second']:.2f}"),
    ("all keys", way(DENSE.__eq__)), ("a budget", way(lambda name: name.startswith("budget"))),
    ("and half streaming", way(lambda name: name.endswith("half streaming"))),
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(brief, MEDIANS)}, on_gpu=False)

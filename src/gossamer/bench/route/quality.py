"""What spending a share of the multiply-adds per token costs a language model, by the way in which they are spent.

A byte-pair model of the sources of Python's library, small enough to train in a minute, over three seeds. A way is
better than another where their losses differ by more than two standard deviations.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.cells import Rows, lines
from gossamer.bench.route.methods import METHODS, OURS, Recipe, longer, measured, taught
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.data.language import in_order, library
from gossamer.routing.lm import RadialConfig

logger = logging.getLogger(__name__)

BUDGETS = (0.7, 0.5)
WHOLE = "all layers"
SIZES = RadialConfig(vocabulary=1024, width=64, layers=10, heads=4, context=128)
RECIPE = Recipe(SIZES, length=96, batch=8, first=250, then=250)
QUICK = Recipe(
    RadialConfig(vocabulary=300, width=64, layers=4, heads=4, context=64), length=16, batch=2, first=2, then=2
)


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    recipe, seeds = (QUICK, settings.seeds[:2]) if settings.quick else (RECIPE, settings.seeds[:3])
    text = library(recipe.sizes.vocabulary, most=60_000 if settings.quick else 2_000_000)
    held = in_order(text.validation, length=recipe.length, batch=16, most=16 if settings.quick else 256)
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for seed in seeds:
        run = taught(recipe, text, seed)
        layers = recipe.sizes.layers
        found.setdefault((1.0, WHOLE), []).append(measured(longer(run), held, layers))
        for budget in BUDGETS:
            for name, method in METHODS.items():
                said = measured(method(run, budget), held, layers)
                logger.info("seed %d, budget %.1f, %s: %s", seed, budget, name, said)
                found.setdefault((budget, name), []).append(said)
    for (budget, name), each in found.items():
        yield {
            "budget": budget, "way": name, "seeds": len(each), "losses": [one["loss"] for one in each],
            "shares": [one["share"] for one in each], "layers": recipe.sizes.layers, "width": recipe.sizes.width,
            "steps": recipe.first + recipe.then,
        }  # fmt: skip


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def beats(mine: list[float], theirs: list[float]) -> str:
    """How far a way's losses lie below another's, in standard deviations of the differences of seeds."""
    apart = [b - a for a, b in zip(mine, theirs, strict=True)]
    mean, deviation = statistics.mean(apart), spread(apart)
    said = "better" if mean > 2 * deviation else "worse" if mean < -2 * deviation else "even"
    return f"{mean:+.3f} ({said})"


def text(rows: Rows) -> str:
    body = []
    for row in rows:
        others = {each["way"]: each for each in rows if each["budget"] == row["budget"]}
        against = [
            beats(row["losses"], others[name]["losses"]) if row["way"] in OURS and name in others else ""
            for name in list(METHODS)[:4]
        ]
        body.append([
            f"{row['budget']:.1f}", row["way"], f"{statistics.mean(row['shares']):.3f}",
            f"{statistics.mean(row['losses']):.3f} (sd {spread(row['losses']):.3f})", *against,
        ])  # fmt: skip
    head = ["budget", "way", "multiply-adds", "loss", *(f"below {name}" for name in list(METHODS)[:4])]
    return lines(head, body)


SECTION = Section(
    rows, Table(text, "Losses are means over seeds; a way is better than another beyond two standard deviations."),
    on_gpu=False,
)  # fmt: skip

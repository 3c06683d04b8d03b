"""SmolLM2 when its tokens run a share of its layers: how well it foretells text, beside what a token costs and takes.

Routers, and the small adapters that take the place of skipped layers, are trained on the model's own outputs for some
minutes; its weights stay. The layers that a static way drops, and the ones that are skipped at random, get the same
adapters and the same training. Text is the sources of Python's library; the files that are foretold are not among those
that were trained on. Decoding is one text, four tokens behind a context of 256.
"""

from __future__ import annotations

import logging
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.attention.decoders import TOY, Decoder, llama, smollm2, transformers_here
from gossamer.bench.cells import CONTROL, Cell, value
from gossamer.bench.route.speed import STEPS as TOKENS
from gossamer.bench.route.speed import Decoding
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.data.language import in_order, windows
from gossamer.routing.learning.diagnosis import health
from gossamer.routing.learning.training import distill
from gossamer.routing.policies.fixed import EarlyExit, RandomSkip, Static
from gossamer.routing.policies.policy import Policy
from gossamer.routing.profiling.profiling import profile
from gossamer.routing.radial import Radial
from gossamer.serving.cache import SparseCache

logger = logging.getLogger(__name__)

HELD = ("argparse.py", "statistics.py", "tarfile.py")
TRAINED = ("asyncio", "email", "http", "json", "logging", "multiprocessing", "unittest", "xml")
BUDGETS = (0.9, 0.8, 0.7)
BASE = "all layers"
RANK, LENGTH, BATCH, TRAINING, CONTEXT = 32, 128, 2, 40, 256


def tokens_of(decoder: Decoder, paths: list[Path], most: int) -> Tensor:
    """The tokens of some files, one after the other."""
    said = "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)[:most]
    if decoder.tokenizer is None:
        return torch.tensor(list(said.encode()), dtype=torch.int32)
    return torch.tensor(decoder.tokenizer.encode(said, add_special_tokens=False), dtype=torch.int32)


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    quick = Decoder("toy", llama(TOY | {"num_hidden_layers": 4}, torch.float32)) if settings.quick else None
    decoder = quick or smollm2(settings)
    if decoder is None:
        return
    root = Path(sysconfig.get_path("stdlib"))
    trained = sorted(path for name in TRAINED for path in (root / name).rglob("*.py"))
    text = tokens_of(decoder, trained, 20_000 if settings.quick else 2_000_000)
    held = tokens_of(decoder, [root / name for name in HELD], 2_000 if settings.quick else 60_000)
    length, steps = (32, 2) if settings.quick else (LENGTH, TRAINING)
    batches = in_order(held, length=32 if settings.quick else 2 * LENGTH, batch=4, most=4 if settings.quick else 12)
    model = decoder.model
    base = Radial(model, "sequential").eval()
    units, width = len(base.units), base.stack.width
    order = profile(model, [text[: 8 * length].long().view(8, -1)]).order()
    yield from table_rows(decoder.name, 1.0, {BASE: base}, model, batches, settings)
    for budget in BUDGETS[-1:] if settings.quick else BUDGETS:
        count = round(units * budget)
        keep = sorted(order[units - count :])
        rate = [0.0, *[(1 - budget) * units / (units - 2)] * (units - 2), 0.0]
        policies: dict[str, tuple[Policy | None, float | None]] = {
            "static drop": (Static(units, width, keep=keep), None),
            "random skip": (RandomSkip(units, width, rate=rate, seed=0), None),
            "router": (None, budget),
        }
        found: dict[str, Radial] = {}
        for name, (policy, target) in policies.items():
            torch.manual_seed(0)
            radial = Radial(model, kv="propagate", policy=policy, adapter=RANK).train()
            drawn = windows(text, length=length, batch=BATCH, steps=steps, seed=1)
            distill(radial, None, drawn, budget=target, steps=steps, progress=False)
            found[name] = radial.eval()
            logger.info("%s at %.1f is trained", name, budget)
        exits = EarlyExit(units, width, unit=count)
        found["early exit, untrained"] = Radial(model, kv="propagate", policy=exits).eval()
        yield from table_rows(decoder.name, budget, found, model, batches, settings)


def table_rows(
    name: str, budget: float, found: dict[str, Radial], model: Any, batches: list[Tensor], settings: Settings
) -> Iterator[Row]:
    """A row for each way, with its decoding beside that of transformers."""
    import transformers

    context = 32 if settings.quick else CONTEXT
    calls = {"transformers": Decoding(model, transformers.DynamicCache(config=model.config), context)}
    calls |= {way: Decoding(radial, SparseCache(radial.geometry), context) for way, radial in found.items()}
    run = gs.measure.interleave(calls, baseline="transformers", reps=settings.reps, warmup=1, seconds=60).to_dict()
    for way, radial in found.items():
        said = health(radial, batches)
        entry = next(each for each in run["rows"] if each["name"] == way)
        yield {
            "model": name, "budget": budget, "way": way, "perplexity": math.exp(said.loss), "share": said.cost,
            "tokens_per_second": TOKENS / entry["median"], "over_transformers": entry["ratio"], **run,
        }  # fmt: skip


def rate(row: Row) -> str:
    return f"{row['tokens_per_second']:.1f} ({row['over_transformers']:.2f}x of transformers)"


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("model", value("model")), ("budget", value("budget", ".1f")), ("way", value("way")),
    ("multiply-adds", value("share", ".3f")), ("perplexity", value("perplexity", ".2f")), ("tokens/s", rate), CONTROL,
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), on_gpu=False)

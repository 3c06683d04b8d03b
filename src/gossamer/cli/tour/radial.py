"""Radial Networks on SmolLM2: a router learns in half a minute which layers tokens can do without."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.route.pretrained import CONTEXT, HELD, TRAINED, tokens_of
from gossamer.bench.route.speed import Decoding
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.cli.tour.decoder import decoder
from gossamer.data.language import in_order, windows
from gossamer.report.quantity import percent
from gossamer.routing.diagnosis import health
from gossamer.routing.radial import Radial
from gossamer.routing.training import distill
from gossamer.serving.cache import SparseCache

BUDGET, STEPS, LENGTH, BATCH, RANK = 0.8, 16, 128, 2, 32
DENSE, OURS, IDLE = "all layers", "router", "router that keeps all"


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    say("loading SmolLM2")
    loaded = decoder(quick)
    model = loaded.model
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for name in TRAINED for path in (root / name).rglob("*.py"))
    text = tokens_of(loaded, paths, 20_000 if quick else 400_000)
    held = tokens_of(loaded, [root / name for name in HELD], 4_000 if quick else 60_000)
    length, steps = (32, 2) if quick else (LENGTH, STEPS)
    torch.manual_seed(0)
    radial = Radial(model, kv="propagate", adapter=RANK).train()
    say(f"training a router on Python's library, {steps} steps")
    drawn = windows(text, length=length, batch=BATCH, steps=steps, seed=1)
    distill(
        radial, None, drawn, budget=BUDGET, steps=steps, progress=False,
        on_step=lambda history: say(f"training the router, step {len(history['step'])} of {steps}"),
    )  # fmt: skip
    radial.eval()
    say("reading files that it was not trained on")
    batches = in_order(held, length=2 * length, batch=2, most=4)
    whole = Radial(model, mode="sequential").eval()
    said, all_of_it = health(radial, batches), health(whole, batches)
    say("timing tokens in turns")
    import transformers

    context = 32 if quick else CONTEXT
    reps = 5 if quick else 11
    dense = Decoding(model, transformers.DynamicCache(config=model.config), context)
    sequential = Decoding(whole, SparseCache(whole.geometry), context)
    best = fastest({"transformers": dense, DENSE: sequential})
    timed: dict[str, Any] = {DENSE: best, OURS: Decoding(radial, SparseCache(radial.geometry), context)}
    run = gs.measure.interleave(timed, baseline=DENSE, reps=reps, warmup=1, seconds=10).to_dict()
    idle = Radial(model, kv="propagate").eval()
    timed = {DENSE: best, IDLE: Decoding(idle, SparseCache(idle.geometry), context)}
    all_run = gs.measure.interleave(timed, baseline=DENSE, reps=reps, warmup=1, seconds=10).to_dict()
    gain = Timed(
        f"four tokens behind a context of {context}, batch 1, over the faster of transformers and our own decoding "
        f"with all {len(whole.units)} layers",
        OURS, run,
    )  # fmt: skip
    loses = Timed("a router that was not trained yet and sends every token through every layer", IDLE, all_run)
    facts = (
        (percent(said.cost, 0), "of the multiply-adds per token"),
        (
            f"{math.exp(said.loss):.1f}",
            f"perplexity of other files; all layers {math.exp(all_of_it.loss):.1f}",
        ),
        (f"{said.depth:.1f}", f"layers that a token ran in the mean, of {len(whole.units)}"),
    )
    return Outcome(gain, loses, facts)


def fastest(calls: dict[str, Any]) -> Any:
    trial = gs.measure.interleave(calls, reps=3, warmup=1)
    return calls[min(trial.rows, key=lambda row: row.median).name]


CARD = Card(
    "Radial Networks",
    "My model spends every layer on every token: let tokens choose",
    "A small router reads a token's state and says which layer comes next, so easy tokens skip some. It learns from "
    "the model's own outputs; the weights stay as they are.",
    "It loses quality, here more than it would after longer training, and a router that skips nothing costs a little.",
    """
radial = gs.routing.Radial(model, kv="propagate", adapter=32)
gs.routing.distill(radial, None, batches, budget=0.8, steps=500)
radial.eval().generate(input_ids, max_new_tokens=64)
""",
    "docs/routing.md",
    run,
)

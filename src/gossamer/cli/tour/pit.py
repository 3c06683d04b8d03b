"""PIT on MiniLM: batches of real texts, more than half padding, through one line of torch.compile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.compile import padding, ways
from gossamer.bench.compile.padding import Batch, over
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.dense import Call, over_dense, settle
from gossamer.bench.section import Settings
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.report.quantity import percent, short, times
from gossamer.xmc.encoders.transformer import find

LONGEST, TEXTS = 128, 16


def full(longest: int) -> list[Batch]:
    """As many texts that are all cut: no padding."""
    rows = [row for row in padding.numbered(padding.texts(16 * TEXTS), longest) if len(row) == longest]
    ids = torch.stack((rows * TEXTS)[:TEXTS])
    return [(ids, torch.ones_like(ids))]


@torch.inference_mode()
def product(model: Any, batch: Batch, settings: Settings) -> float:
    """One product of a batch, over the fastest dense one: nobody says which of its rows are padding."""
    ids, mask = batch
    rows = (model.embeddings(input_ids=ids) * mask[..., None]).flatten(0, 1)
    weight = model.encoder.layer[0].intermediate.dense.weight.t()
    calls: dict[str, Call] = {OURS: partial(gs.ops.matmul, rows, weight)}
    settle(settings, calls[OURS])
    run = over_dense(calls, settings, rows, weight, "b", seconds=4)
    return float(next(row["ratio"] for row in run["rows"] if row["name"] == OURS))


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    if not quick:
        find("minilm")
    settings = Settings(quick=quick, reps=5 if quick else 11)
    longest = 16 if quick else LONGEST
    say("reading the docstrings of Python's library")
    data = padding.batches(longest, 1, size=TEXTS)
    model = padding.toy() if quick else padding.minilm()
    model.requires_grad_(False)
    found = ways.compiled(model, names=(EAGER, INDUCTOR, OURS))

    def timed(batches: list[Batch]) -> dict[str, Any]:
        calls: dict[str, ways.Call] = {name: partial(over, way, batches) for name, way in found.items()}
        return ways.measured(calls, settings, learn=2, seconds=8)

    say("compiling for inductor and for gossamer, then timing in turns")
    padded = timed(data)
    differ = padding.apart(over(found[OURS], data), over(found[EAGER], data), data)
    say("the same with no padding at all")
    whole = timed(full(longest))
    there = sum(int(mask.sum()) for _, mask in data) / sum(mask.numel() for _, mask in data)
    gain = Timed(
        f"a batch of {TEXTS} docstrings through MiniLM with its real weights, cut at {longest} tokens: "
        f"{percent(1 - there, 0)} of the places are padding",
        OURS, padded,
    )  # fmt: skip
    loses = Timed(f"the same model on texts that all have {longest} tokens: nothing can be left out", OURS, whole)
    facts = (
        (
            times(product(model, data[0], settings)),
            "of dense: one product of such a batch by gs.ops.matmul, which finds the zero rows itself",
        ),
        (times(1 / there), "what leaving out every padded place could give, were time all in them"),
        (short(padded["compile"][OURS], "s"), f"of the first call; inductor {short(padded['compile'][INDUCTOR], 's')}"),
        (f"{differ:.0e}", "largest difference from eager at real tokens, over the largest number"),
    )
    return Outcome(gain, loses, facts)


CARD = Card(
    "PIT",
    "My batch is half padding, or my activations half zeros: one line for the model I have",
    "A compiler that finds zeros of a call (padding, ReLU's zeros, masks, unchosen experts), packs what is left into "
    "dense tiles, and hands the rest to inductor. The answers stay the same.",
    "It loses the seconds of compiling where nothing is zero.",
    """
print(gs.compile.explain(model, {"input_ids": ids, "attention_mask": mask}))
model = torch.compile(model, backend="gossamer")
model(input_ids=ids, attention_mask=mask)
""",
    "docs/compile.md",
    run,
)

"""SPARTEX on Python's own library: which names a function uses, from its signature and docstring."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench.dense import Call, choose
from gossamer.bench.section import Settings
from gossamer.bench.xmc.dense_head import PRODUCTS, DenseHead
from gossamer.bench.xmc.quality import Model, trained
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.report.quantity import short
from gossamer.xmc import FusedHead
from gossamer.xmc.data import Csr, stdlib

LABELS, WIDTH, FAN_IN, BATCH = 262_144, 768, 64, 32
FEW, MANY = 500, 512
"""Labels and texts of a step where there is little to leave out."""
EPOCHS, EMBEDDING = 4, 512
DENSE, OURS = "dense", "fan-in 64"


def steps(labels: int, width: int, batch: int, quick: bool) -> dict[str, Any]:
    """One step of training a head over so many labels: ours over the fastest of dense ones."""
    settings = Settings(quick=quick, reps=5 if quick else 11)
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(batch, width, generator=generator), dim=1)
    chosen = Csr.from_lists(torch.randint(labels, (batch, 5), generator=generator).tolist(), labels)
    weight = torch.empty(labels, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
    bias = torch.zeros(labels)
    found: dict[str, Call] = {}
    for name, product in PRODUCTS.items():
        for block in (16_384, 1_024):
            rival = DenseHead(weight, bias, loss="bce", block=min(block, labels), product=product)
            found[f"{name} {block}"] = partial(rival.step, x, chosen, 1e-4)
    calls: dict[str, Call] = {}
    choose(found, calls, DENSE, settings, 6 * batch * labels * width)
    head = FusedHead(width, labels, fan_in=min(FAN_IN, width // 2))
    calls[OURS] = partial(head.step, x, chosen, 1e-4)
    return gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, warmup=1, seconds=10).to_dict()


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    say("reading the functions of Python's library")
    data = stdlib(Path(asyncio.__file__).parent if quick else None, documented=True)
    given = {"width": 16, "features": 512} if quick else {"width": EMBEDDING}
    recipe = {"fan_in": 8 if quick else FAN_IN, "epochs": 1 if quick else EPOCHS}
    found: dict[str, dict[str, Any]] = {}
    for name, is_dense in ((OURS, False), (DENSE, True)):
        say(f"training a {name} head over {data.labels:,} labels")
        found[name] = trained(
            Model(name, {**given, **({"words": 0} if is_dense else {})}, recipe, dense=is_dense), data, 0
        )
    labels, width = (2_000, 64) if quick else (LABELS, WIDTH)
    say(f"timing steps over {labels:,} labels in turns")
    gain = Timed(
        f"one training step of a head over {labels:,} labels of width {width}, {BATCH} texts: each label reads "
        f"{FAN_IN} of the {width} numbers, and which ones moves",
        OURS, steps(labels, width, BATCH, quick),
    )  # fmt: skip
    loses = Timed(
        f"{MANY} texts and {FEW} labels, a usual classifier, whose dense weights lie in a cache",
        OURS, steps(FEW, width, MANY, quick),
    )  # fmt: skip
    ours, dense = found[OURS], found[DENSE]
    facts = (
        (f"{ours['scores']['P@1']:.1f} %", f"of test texts get a right label first ({data.labels:,} labels of Python's "
         f"library, {recipe['epochs']} epochs); dense {dense['scores']['P@1']:.1f} %"),
        (short(ours["head_bytes"], "B"), f"of head there; dense {short(dense['head_bytes'], 'B')}"),
    )  # fmt: skip
    return Outcome(gain, loses, facts)


CARD = Card(
    "SPARTEX",
    "My labels are a million: a head that trains in a laptop's memory",
    "Each label reads a fixed, small number of inputs, which move while it trains. There are no dense weights, no "
    "gradients of them and no table of logits, so memory and time grow with what is read.",
    "It loses accuracy where a label needs more inputs than it has, and time where labels are few.",
    """
clf = gs.xmc.Classifier("bow", fan_in=64, epochs=10)
clf.fit(texts, label_sets, labels=count)
scores, ids = clf.predict_topk(["a new text"], k=5)
""",
    "docs/xmc.md",
    run,
)

"""Searching a head's labels: one text, a batch over its forward pass, and groups over labels with inputs of their own.

Backward is what a step takes beyond the search, which makes the same logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import gossamer as gs
from gossamer.bench.cells import CONTROL, Row, milliseconds, value
from gossamer.bench.dense import Call
from gossamer.bench.section import Section, Settings, Table
from gossamer.bench.xmc.steps import OPTIONS, all_logits, batch_of, made, sizes
from gossamer.xmc.encoders import make

MILLIONS = 3_000_000
TEXT = "the quick brown fox jumps over the lazy dog, and a sparse classifier names what it was"


def rows(settings: Settings) -> Iterator[Row]:
    """One text with each kind of head and with an encoder; top-5 of a batch over its logits; groups."""
    labels, width, fan_in, batch = sizes(settings)
    x, y = batch_of(settings)
    facts = {"labels": labels, "width": width, "fan_in": fan_in}
    heads = {name: made(settings, **OPTIONS[name]) for name in ("fp32", "bf16", "G=16")}
    calls: dict[str, Call] = {name: partial(each.topk, x[:1], 5) for name, each in heads.items()}
    yield {"what": "one text, top-5", **facts, "batch": 1, **_run(calls, "fp32", settings)}
    bow = make("bow", width=width, words=0)
    bow.learn([TEXT] * 3)
    with torch.inference_mode():
        calls = {"head": calls["bf16"], "words and head": lambda: heads["bf16"].topk(bow(bow.prepare([TEXT])), 5)}
        yield {"what": "one text, bag of words", **facts, "batch": 1, **_run(calls, "head", settings)}
    both = {"G=1": heads["fp32"], "G=16": heads["G=16"]}
    calls = {name: partial(each.topk, x, 5) for name, each in both.items()}
    calls |= {f"{name}, step": partial(each.step, x, y, 1e-4) for name, each in both.items()}
    run = _run(calls, "G=1", settings)
    times = {each["name"]: each["median"] for each in run["rows"]}
    taken = times["G=16, step"] - times["G=16"]
    backward = (times["G=1, step"] - times["G=1"]) / taken if taken > 0 else None  # toy sizes are all noise
    yield {"what": "groups", **facts, "batch": batch, "backward": backward, **run}
    del both, calls
    heads.clear()
    large = gs.xmc.FusedHead(width, labels if settings.quick else MILLIONS, fan_in=fan_in)
    calls = {"forward": partial(all_logits, large, x), "top-5": partial(large.topk, x, 5)}
    yield {"what": "top-5 over all logits", **facts, "labels": large.labels, "batch": batch,
           **_run(calls, "forward", settings)}  # fmt: skip


def _run(calls: dict[str, Call], baseline: str, settings: Settings) -> Row:
    return gs.measure.interleave(calls, baseline=baseline, reps=settings.reps, warmup=1, seconds=30).to_dict()


def _candidates(row: Row) -> str:
    """Of each its time, and how many times as fast as the baseline it is."""
    found = [
        f"{e['name']} {e['median'] * 1e3:.1f} ms, {e['ratio']:.2f}x"
        for e in row["rows"]
        if e["name"] != row["baseline"]
    ]
    return "; ".join([*found, *([f"backward {row['backward']:.2f}x"] if row.get("backward") is not None else [])])


COLUMNS = (
    ("", value("what")), ("labels", value("labels", ",")), ("batch", value("batch")), ("over", value("baseline")),
    ("ms", milliseconds(digits=1)), ("", _candidates), CONTROL,
)  # fmt: skip

SECTION = Section(rows, Table(COLUMNS), on_gpu=False)

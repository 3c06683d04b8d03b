"""Peak memory of a head in training, in a process of its own, beside what its sizes say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from gossamer.bench.cells import Cell, value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.xmc.heads.memory import Layout

WIDTH, BATCH, STEPS = 768, 32, 3
CASES = ((670_091, 64, "float32", "sgd"), (3_000_000, 64, "bfloat16", "sgd"), (100_000_000, 16, "bfloat16", "sgd"))

# What is measured is the largest resident set, less that of a process which has done the same with few labels.
_PROGRAM = """
import json, sys, tempfile, torch
from gossamer.measure import clock
from gossamer.xmc import FusedHead
labels, fan_in, dtype, optimizer, batch, steps = json.loads(sys.argv[1])

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def work(labels):
    seconds, begin = {}, clock.now()
    def lap(name):
        nonlocal begin
        seconds[name], begin = clock.now() - begin, clock.now()
    head = FusedHead(768, labels, fan_in=fan_in, dtype=getattr(torch, dtype), optimizer=optimizer)
    lap("made")
    x = torch.randn(batch, 768)
    for _ in range(steps):
        head.step(x, [[row % labels, labels - 1] for row in range(batch)], 0.1)
    seconds["step"] = (clock.now() - begin) / steps
    begin = clock.now()
    head.rewire(0.1)
    lap("rewire")
    head.topk(x, 5)
    lap("top-5")
    trained = peak()
    with tempfile.TemporaryDirectory() as folder:
        head.save(folder)
        lap("saved")
        FusedHead.open(folder)
        lap("opened")
    return trained, seconds

before, _ = work(1000)
trained, seconds = work(labels)
print(json.dumps({"bytes": trained - before, "seconds": seconds}))
"""


def rows(settings: Settings) -> Iterator[Row]:
    """One row a head: made, three steps, a rewiring, a top-5, saved and opened."""
    for labels, fan_in, dtype, optimizer in ((2_000, 16, "float32", "sgd"),) if settings.quick else CASES:
        words = json.dumps([labels, fan_in, dtype, optimizer, BATCH, STEPS])
        done = subprocess.run([sys.executable, "-c", _PROGRAM, words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{labels} labels could not be trained: {done.stderr.strip().splitlines()[-1]}")
        layout = Layout(fan_in, 2, {"float32": 4, "bfloat16": 2}[dtype], 0, 1, True)
        found = json.loads(done.stdout)
        yield {
            "labels": labels, "fan_in": fan_in, "dtype": dtype, "optimizer": optimizer, "width": WIDTH, "batch": BATCH,
            "formula": labels * layout.label, **found,
        }  # fmt: skip


def _gib(key: str) -> Cell:
    return lambda row: f"{row[key] / 2**30:.2f}"


def _seconds(name: str) -> Cell:
    return lambda row: f"{row['seconds'][name]:.3g}"


COLUMNS = (
    ("labels", value("labels", ",")), ("fan-in", value("fan_in")), ("dtype", value("dtype")),
    ("formula GiB", _gib("formula")), ("peak GiB", _gib("bytes")),
    *((f"{name} s", _seconds(name)) for name in ("made", "step", "rewire", "top-5", "saved", "opened")),
)  # fmt: skip

SECTION = Section(
    rows, Table(COLUMNS, "Bytes beyond those of a process that did the same with 1000 labels."), on_gpu=False
)

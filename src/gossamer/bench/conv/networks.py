"""Whole networks, training and inference steps, at the densities that SparseTrain's authors measured on ImageNet.

Five copies of one network step in turn: torch in both memory formats; ours, `gs.nn.skip_zeros` and nothing else
changed, with the input in either format; and ours with what it can be asked for, packs kept and weights in
channels_last. `calibrate` brought every ReLU to its share of zeros; the optimizer has a learning rate of zero, so that
its work is done (and kept packs are stale after it) but the zeros stay. Hooks tell the convolutions but the first from
the rest of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.cells import CONTROL, Cell, Column, milliseconds, ratio, short, table, value
from gossamer.bench.conv import densities, split
from gossamer.bench.conv.calibrate import calibrate, reached
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS
from gossamer.bench.conv.images import photographs
from gossamer.bench.section import MEDIANS, Row, Rows, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.measure import Comparison, clock
from gossamer.measure import Row as Timed
from gossamer.measure.interleave import turns

OURS = "gs.nn.skip_zeros"
PLAIN = "gs.nn.skip_zeros, contiguous input"
FORMATS = {"channels_last": OURS, "contiguous": PLAIN}  # of the images
ASKED = "gs.nn.skip_zeros, keep_packed and channels_last"
BATCH = {"vgg16_plain": 4, "resnet34": 8, "resnet50": 8, "fixup_resnet50": 8}
TOY: dict[str, dict[str, Any]] = {
    "vgg16_plain": {"head": (64, 64)}, "resnet34": {"width": 16}, "resnet50": {"width": 8},
    "fixup_resnet50": {"width": 8},
}  # fmt: skip
LEARN = 20  # steps before the clock starts, for the tuners' trials: a weight gradient has three alternatives
MOST, LEAST, SECONDS = 15, 5, 40.0  # rounds: as many as fit into so many seconds

Step = Callable[[], Any]


def inference_step(model: nn.Module, x: Tensor) -> Step:
    def step() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return step


def arms(model: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, Tensor, Any]]:
    """Name -> network, its input in its layout, and the report of the conversion where there was one."""
    last = x.contiguous(memory_format=torch.channels_last)
    ours, plain, asked = (copy.deepcopy(model) for _ in range(3))
    report, other = gs.nn.skip_zeros(ours), gs.nn.skip_zeros(plain)
    more = gs.nn.skip_zeros(asked, keep_packed=True, channels_last=True)
    moved = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    for net in (moved, model, ours, plain, asked):
        split.mark(net)
    return {
        CHANNELS_LAST: (moved, last, None), CONTIGUOUS: (model, x, None),
        OURS: (ours, last, report), PLAIN: (plain, x, other), ASKED: (asked, last, more),
    }  # fmt: skip


def rounds(steps: dict[str, Step], reps: int, learn: int) -> dict[str, list[dict[str, float]]]:
    """Split times of every step, in turn, every second round backwards; torch's have controls under "(control)"."""
    for name, step in steps.items():
        for _ in range(learn if name in (OURS, PLAIN, ASKED) else 1):
            step()
    calls = {**steps, f"{CHANNELS_LAST} (control)": steps[CHANNELS_LAST], f"{CONTIGUOUS} (control)": steps[CONTIGUOUS]}
    names = list(calls)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    start = clock.now()
    for rep in range(reps):
        if rep >= LEAST and clock.now() - start > SECONDS:
            break
        for name in turns(names, rep):
            samples[name].append(split.timed(calls[name]))
    return samples


def compare(samples: dict[str, list[dict[str, float]]], part: str) -> dict[str, Any]:
    """One part of the step as a comparison: ratios over the faster of torch's formats in this part."""
    times = {name: [max(s[part], 1e-9) for s in found] for name, found in samples.items()}
    rows = {name: Timed.of(name, t[0], t, t) for name, t in times.items()}
    best = min((CHANNELS_LAST, CONTIGUOUS), key=lambda name: rows[name].median)
    control = f"{best} (control)"
    out = {name: Timed.of(name, t[0], t, times[best]) for name, t in times.items()}
    kept = tuple(out[name] for name in (CHANNELS_LAST, CONTIGUOUS, OURS, PLAIN, ASKED) if name in out)
    return Comparison(best, kept, out[control]).to_dict()


def row(name: str, mode: str, settings: Settings) -> dict[str, Any]:
    """One network in one mode."""
    batch, side = (2, 32) if settings.quick else (BATCH[name], 224)
    zeros = densities.AUTHORS[name]
    x, y = photographs(batch, side), torch.arange(batch) % 10
    torch.manual_seed(0)
    options = TOY[name] if settings.quick else {}
    model = gs.models.build(name, input_shape=(3, side, side), classes=1000, **options)
    calibrate(model, x, zeros)
    model.train(mode == "training")
    found = reached(copy.deepcopy(model), x)
    made = arms(model, x)
    steps: dict[str, Step] = {}
    for key, (net, image, _) in made.items():
        still = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
        steps[key] = training_step(net, still, image, y) if mode == "training" else inference_step(net, image)
    samples = rounds(steps, 1 if settings.quick else min(settings.reps, MOST), 1 if settings.quick else LEARN)
    return {
        "network": name, "mode": mode, "batch": batch, "side": side,
        "published": densities.PUBLISHED[name].get(mode), "zeros": sum(found) / len(found),
        "conv": compare(samples, "conv"), "forward": compare(samples, "forward"),
        **({"backward": compare(samples, "backward")} if mode == "training" else {}),
        "split": {key: split.median(samples[key]) for key in steps},
        "relus": [{"authors": wanted, "reached": got} for wanted, got in zip(zeros, found, strict=True)],
        "sites": made[OURS][2].stats(), **compare(samples, "step"),
    }  # fmt: skip


def rows(settings: Settings) -> Iterator[Row]:
    """Every network in training, then in inference; a quick run leaves out ResNet-50, which Fixup's is like."""
    for mode, name in product(("training", "inference"), densities.AUTHORS):
        if not (settings.quick and name == "resnet50"):
            yield row(name, mode, settings)


def _of_conv(cell: Cell) -> Cell:
    return lambda row: cell(row["conv"])


def _outside(name: str | None = None) -> Cell:
    """Milliseconds of a step outside the convolutions; the baseline's without a name."""

    def cell(row: dict[str, Any]) -> str:
        parts = row["split"][name or row["baseline"]]
        return f"{1e3 * sum(parts.get(part, 0.0) for part in ('first', 'copies', 'other')):.0f}"

    return cell


COLUMNS = (
    ("network", value("network")), ("step", value("mode")), ("batch", value("batch")),
    ("mean zeros", value("zeros", ".0%")),
    ("convolutions: torch ms", _of_conv(milliseconds())), ("ours", _of_conv(ratio(OURS))),
    (CONTROL[0], _of_conv(CONTROL[1])),
    ("published", lambda row: f"{row['published']:.2f}x" if row["published"] else ""),
    ("whole step: torch ms", milliseconds()), ("ours", ratio(OURS)), ("contiguous input", short(PLAIN)),
    ("packs kept and channels_last", short(ASKED)), CONTROL,
    ("outside the convolutions: torch ms", _outside()), ("ours ms", _outside(OURS)),
)  # fmt: skip


def brief(rows: Rows) -> str:
    """One line per network: both kinds of step, with images in either memory format."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["network"], {"network": row["network"]})[row["mode"]] = row

    def of(mode: str, head: str, name: str) -> Column:
        return f"{mode}, {head}", lambda row: short(name)(row[mode])

    columns = [of(mode, head, name) for head, name in FORMATS.items() for mode in modes]
    return table(list(found.values()), [("network", value("network")), *columns])


SECTION = Section(rows, Table(COLUMNS), {"brief": Table(brief, note=MEDIANS)}, on_gpu=False)

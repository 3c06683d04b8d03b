"""One step of a classifier's head: forward, loss, backward and update; its forward alone; top-k.

The dense rival takes the same step label block by label block, with the fastest dense product. With the squared hinge
most labels stand outside the margin after some training, and cost a forward pass only: "warm" rows are of a head whose
logits are below the margin for all labels but those of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.cells import CONTROL, milliseconds, ratio, short, value
from gossamer.bench.dense import Call, choose
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.bench.xmc.dense_head import PRODUCTS, DenseHead
from gossamer.xmc import FusedHead
from gossamer.xmc.data import Csr

LABELS, WIDTH, FAN_IN, BATCH = 670_091, 768, 64, 32
DENSE = "dense"
FORWARD_BLOCK = 65_536  # labels of which logits are in memory together
WARM_BIAS = -3.0  # beyond the margin of every label that is not in the batch


def sizes(settings: Settings) -> tuple[int, int, int, int]:
    """Labels, width, fan-in, batch."""
    return (2_000, 64, 16, 8) if settings.quick else (LABELS, WIDTH, FAN_IN, BATCH)


def batch_of(settings: Settings) -> tuple[Tensor, Csr]:
    """Examples of length 1, and five labels each."""
    labels, width, _, batch = sizes(settings)
    generator = torch.Generator().manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(batch, width, generator=generator), dim=1)
    positive = torch.randint(labels, (batch, 5), generator=generator)
    return x, Csr.from_lists(positive.tolist(), labels)


def made(settings: Settings, **options: Any) -> FusedHead:
    labels, width, fan_in, _ = sizes(settings)
    return FusedHead(width, labels, fan_in=fan_in, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {}, "bf16": {"dtype": torch.bfloat16}, "G=16": {"group": 16}, "Adam": {"optimizer": "adam"},
}  # fmt: skip


def _ours(settings: Settings, loss: str, x: Tensor, labels: Csr) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for name, options in OPTIONS.items():
        head = made(settings, loss=loss, **options)
        if loss == "hinge" and head.bias is not None:
            head.bias.fill_(WARM_BIAS)
        calls[name] = partial(head.step, x, labels, 1e-4)
    return calls


def _dense(settings: Settings, loss: str) -> dict[str, DenseHead]:
    """The same weight by torch's product and by another engine, in blocks that suit memory or a core's cache."""
    labels, width, _, _ = sizes(settings)
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(labels, width).uniform_(-(width**-0.5), width**-0.5, generator=generator)
    bias = torch.full((labels,), WARM_BIAS if loss == "hinge" else 0.0)
    return {
        f"{name} {block}": DenseHead(weight, bias, loss=loss, block=block, product=product)
        for name, product in PRODUCTS.items()
        for block in (16_384, 1_024)
    }


def all_logits(head: FusedHead, x: Tensor) -> None:
    """All logits, a block of labels at a time."""
    for begin in range(0, head.labels, FORWARD_BLOCK):
        values, indices = (t[begin : begin + FORWARD_BLOCK] for t in (head.values, head.indices))
        gs.ops.fan_in_mm(x, values, gs.Pattern(None, indices, (len(values), head.width), (1, 1)))


def rows(settings: Settings) -> Iterator[Row]:
    """The step with each loss, then the forward and top-5 over it."""
    labels, width, fan_in, batch = sizes(settings)
    x, y = batch_of(settings)
    facts = {"labels": labels, "width": width, "fan_in": fan_in, "batch": batch}
    for loss in ("bce", "hinge"):
        calls = _ours(settings, loss, x, y)
        dense: dict[str, Call] = {name: partial(head.step, x, y, 1e-4) for name, head in _dense(settings, loss).items()}
        engine = choose(dense, calls, DENSE, settings, 6 * batch * labels * width)
        run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, warmup=1, seconds=60)
        yield {"what": f"step, {'BCE' if loss == 'bce' else 'squared hinge, warm'}", **facts, **engine, **run.to_dict()}
        del calls, dense
    head = made(settings)
    calls = {"fp32": partial(all_logits, head, x), "top-5": partial(head.topk, x, 5)}
    for name in ("bf16", "G=16"):
        calls[f"top-5 {name}"] = partial(made(settings, **OPTIONS[name]).topk, x, 5)
    dense = {name: partial(head.forward, x) for name, head in _dense(settings, "bce").items()}
    engine = choose(dense, calls, DENSE, settings, 2 * batch * labels * width)
    run = gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, warmup=1, seconds=60)
    yield {"what": "forward", **facts, **engine, **run.to_dict()}


COLUMNS = (
    ("", value("what")), ("labels", value("labels", ",")), ("dense ms", milliseconds(digits=0)),
    *((name, ratio(name)) for name in ("fp32", "bf16", "G=16", "Adam", "top-5", "top-5 bf16", "top-5 G=16")), CONTROL,
)  # fmt: skip

BRIEF = (
    ("", value("what")),
    ("dense ms", milliseconds(digits=0)),
    *((each, short(each)) for each in ("fp32", "bf16", "G=16")),
)

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)}, on_gpu=False)

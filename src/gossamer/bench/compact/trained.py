"""Networks for images of 224 pixels whose channels Chase itself chose while it trained them, and what they gain.

Few steps are enough for speed: channels go by the exact number, and only how many are left in each layer matters.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench.cells import milliseconds, ratio, short, value
from gossamer.bench.compact.channels import COMPACT, CONTROL, DENSE, flops
from gossamer.bench.compact.chase import ROUND, chase
from gossamer.bench.section import MEDIANS, Row, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.data import load

CELLS = (  # network, how channels are compared, scope
    ("vgg16", "none", "inner"),
    ("vgg16", "group", "inner"),
    ("vgg16", "cost", "inner"),
    ("resnet50", "none", "inner"),
    ("resnet50", "cost", "inner"),
    ("resnet50", "cost", "all"),
)


def _trained(
    name: str, normalize: str, scope: str, settings: Settings
) -> tuple[nn.Module, gs.training.Chase, dict[str, float]]:
    """A network for images of 224 pixels that was trained by Chase on enlarged digits."""
    classes, steps, batch, side = 10, 8 if settings.quick else 16, 4 if settings.quick else 8, 64
    splits = load("digits", seed=0)
    images = F.interpolate(splits.train_x.expand(-1, 3, -1, -1), size=side, mode="nearest")
    torch.manual_seed(0)
    full = 64 if settings.quick else 224
    model = gs.models.build(name, input_shape=(3, full, full), classes=classes).to(settings.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    method = chase(
        model, optimizer, steps, images[:1].to(settings.device), normalize=normalize, scope=scope, seed=0,
        explore_every=steps // 2, channel_every=steps // 8,
    )  # fmt: skip
    losses = []
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=torch.Generator().manual_seed(step))
        x, y = images[chosen].to(settings.device), splits.train_y[chosen].to(settings.device)
        losses.append(float(training_step(model, optimizer, x, y)()))
    return model.eval(), method, {"first": losses[0], "last": losses[-1]}


def rows(settings: Settings) -> Iterator[Row]:
    """One row per network, `normalize` and scope: Chase's own choice of channels, and its throughput."""
    side, batch = (64, 2) if settings.quick else (224, 8)
    for name, normalize, scope in CELLS:
        model, method, losses = _trained(name, normalize, scope, settings)
        x = torch.randn(batch, 3, side, side, device=settings.device)
        dense = copy.deepcopy(model)
        small = gs.compact(model, x[:1], round_to=ROUND, check_latency=False).model.eval()
        calls = {DENSE: functools.partial(dense, x), COMPACT: functools.partial(small, x)}
        with torch.inference_mode():
            run = gs.measure.interleave(calls, baseline=DENSE, reps=min(settings.reps, 7), warmup=1, seconds=25)
        counts = {key: gs.measure.count(net, x).to_dict() for key, net in ((DENSE, dense), (COMPACT, small))}
        alive = method.channels()
        left, total = (sum(int(count(a)) for a in alive.values()) for count in (torch.count_nonzero, torch.numel))
        yield {
            "model": name, "normalize": normalize, "scope": scope, "batch": batch, "steps": method.step,
            "loss": losses, "chosen_by": "Chase", "share_removed": 1 - left / total, "counts": counts,
            "widths": {group: [int(a.sum()), a.numel()] for group, a in alive.items()}, **run.to_dict(),
        }  # fmt: skip


COLUMNS = (
    ("model", value("model")), ("`normalize`", value("normalize")), ("`scope`", value("scope")),
    ("channels removed", value("share_removed", ".1%")), ("batch", value("batch")),
    ("dense ms", milliseconds(digits=1)), (COMPACT, ratio(COMPACT)), ("FLOPs", flops(COMPACT)), CONTROL,
)  # fmt: skip


BRIEF = (COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[3], (COMPACT, short(COMPACT)), COLUMNS[7])

SECTION = Section(rows, Table(COLUMNS), {"brief": Table(BRIEF, MEDIANS)})

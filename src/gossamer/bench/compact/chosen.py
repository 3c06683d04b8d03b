"""Networks whose channels Chase itself chose while it trained them: how it compares groups, and what they gain.

`scoring` trains on the bundled digits, per seed once dense and once for each way of comparing channels between groups.
`trained` trains ImageNet-sized networks for a few steps, compacts them, and times them on images of 224 pixels. Few
steps are enough for speed: channels go by the exact number, and only how many are left in each layer matters.
"""

from __future__ import annotations

import copy
import functools
import statistics
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench import Settings
from gossamer.data import batches, load, steps_per_epoch

NETWORKS = ("convnet", "resnet20")
CELLS = (  # network, how channels are compared, scope
    ("vgg16", "none", "inner"),
    ("vgg16", "group", "inner"),
    ("vgg16", "cost", "inner"),
    ("resnet50", "none", "inner"),
    ("resnet50", "cost", "inner"),
    ("resnet50", "cost", "all"),
)
NORMALIZE = ("none", "group", "cost")
SHARE = 0.4
ROUND = 16
EPOCHS = 6


def _chase(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, example: torch.Tensor, **options: Any
) -> gs.training.Chase:
    return gs.training.Chase(
        model, optimizer, density=0.1, channel_sparsity=SHARE, total_steps=steps, round_to=ROUND,
        example_inputs=example, **options,
    )  # fmt: skip


def _fit(
    name: str, splits: Any, *, seed: int, epochs: int, normalize: str | None, device: str
) -> tuple[nn.Module, gs.training.Chase | None]:
    """The recipe of `gossamer train`; `normalize=None` trains dense."""
    batch = 64
    total = epochs * steps_per_epoch(len(splits.train_x), batch)
    torch.manual_seed(seed)
    model = gs.models.build(name, input_shape=splits.input_shape, classes=splits.classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=total, pct_start=0.05, div_factor=20.0, cycle_momentum=False
    )
    method, every = None, max(1, total // 50)
    if normalize is not None:
        method = _chase(
            model, optimizer, total, splits.train_x[:2].to(device), normalize=normalize, explore_every=every,
            channel_every=every, seed=seed, scope="all",
        )  # fmt: skip
    for epoch in range(epochs):
        for x, y in batches(splits.train_x, splits.train_y, batch_size=batch, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
            schedule.step()
    return model.eval(), method


def scoring(settings: Settings) -> list[dict[str, Any]]:
    """One row per network, seed and way of comparing, and one with the means."""
    out = []
    for name in NETWORKS:
        rows: list[dict[str, Any]] = []
        for seed in settings.seeds:
            splits = load("digits", seed=seed)
            for normalize in (None, *NORMALIZE):
                model, _ = _fit(
                    name, splits, seed=seed, epochs=1 if settings.quick else EPOCHS, normalize=normalize,
                    device=settings.device,
                )  # fmt: skip
                x, y = splits.test_x.to(settings.device), splits.test_y.to(settings.device)
                small = model if normalize is None else gs.compact(model, x[:2], check_latency=False).model.eval()
                with torch.inference_mode():
                    accuracy = float((small(x).argmax(1) == y).float().mean())
                counts = {key: gs.measure.count(net, x[:1]) for key, net in (("before", model), ("after", small))}
                rows.append(
                    {
                        "model": name, "seed": seed, "normalize": normalize or "dense", "accuracy": accuracy,
                        "flops": counts["after"].flops / counts["before"].flops,
                        "parameters": counts["after"].parameters / counts["before"].parameters,
                    }
                )  # fmt: skip
        for kind in ("dense", *NORMALIZE):
            mine = [row for row in rows if row["normalize"] == kind]
            means = {key: statistics.mean(row[key] for row in mine) for key in ("accuracy", "flops", "parameters")}
            rows.append({"model": name, "seed": "mean", "normalize": kind, **means})
        out += rows
    return out


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
    method = _chase(
        model, optimizer, steps, images[:1].to(settings.device), normalize=normalize, scope=scope, seed=0,
        explore_every=steps // 2, channel_every=steps // 8,
    )  # fmt: skip
    losses = []
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[chosen].to(settings.device)), splits.train_y[chosen].to(settings.device))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), method, {"first": losses[0], "last": losses[-1]}


def trained(settings: Settings) -> list[dict[str, Any]]:
    """One row per network, way of comparing, and scope: Chase's own choice of channels, and its throughput."""
    out = []
    side, batch = (64, 2) if settings.quick else (224, 8)
    for name, normalize, scope in CELLS:
        model, method, losses = _trained(name, normalize, scope, settings)
        x = torch.randn(batch, 3, side, side, device=settings.device)
        dense = copy.deepcopy(model)
        small = gs.compact(model, x[:1], round_to=ROUND, check_latency=False).model.eval()
        calls = {"dense": functools.partial(dense, x), "compact": functools.partial(small, x)}
        with torch.inference_mode():
            run = gs.measure.interleave(calls, baseline="dense", reps=min(settings.reps, 7), warmup=1, seconds=25)
        counts = {key: gs.measure.count(net, x).to_dict() for key, net in (("dense", dense), ("compact", small))}
        alive = method.channels()
        left, total = (sum(int(count(a)) for a in alive.values()) for count in (torch.count_nonzero, torch.numel))
        out.append(
            {
                "model": name, "normalize": normalize, "scope": scope, "batch": batch, "steps": method.step,
                "loss": losses, "chosen_by": "Chase",
                "share_removed": 1 - left / total,
                "counts": counts,
                "widths": {group: [int(a.sum()), a.numel()] for group, a in alive.items()},
                **run.to_dict(),
            }
        )  # fmt: skip
    return out

"""How Chase compares channels between groups: networks trained on the bundled digits.

Per seed, a network is trained once dense and once for each `normalize`.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.bench.cells import Column, table, value
from gossamer.bench.compact.chase import chase
from gossamer.bench.section import Rows, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.data import batches, load, steps_per_epoch

NETWORKS = ("convnet", "resnet20")
DENSE, MEAN = "dense", "mean"
NORMALIZE = ("none", "group", "cost")
EPOCHS = 6


def _fit(name: str, splits: Any, *, seed: int, epochs: int, normalize: str | None, device: str) -> nn.Module:
    """The recipe of `gossamer train`; `normalize=None` trains dense."""
    batch = 64
    total = epochs * steps_per_epoch(len(splits.train_x), batch)
    torch.manual_seed(seed)
    model = gs.models.build(name, input_shape=splits.input_shape, classes=splits.classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=total, pct_start=0.05, div_factor=20.0, cycle_momentum=False
    )
    every = max(1, total // 50)
    if normalize is not None:
        chase(
            model, optimizer, total, splits.train_x[:2].to(device), normalize=normalize, explore_every=every,
            channel_every=every, seed=seed, scope="all",
        )  # fmt: skip
    for epoch in range(epochs):
        for x, y in batches(splits.train_x, splits.train_y, batch_size=batch, seed=seed, epoch=epoch):
            training_step(model, optimizer, x.to(device), y.to(device))()
            schedule.step()
    return model.eval()


def rows(settings: Settings) -> Rows:
    """One row per network, seed and `normalize`, and one with the means."""
    out: Rows = []
    for name in NETWORKS:
        found: Rows = []
        for seed in settings.seeds:
            splits = load("digits", seed=seed)
            for normalize in (None, *NORMALIZE):
                model = _fit(
                    name, splits, seed=seed, epochs=1 if settings.quick else EPOCHS, normalize=normalize,
                    device=settings.device,
                )  # fmt: skip
                x, y = splits.test_x.to(settings.device), splits.test_y.to(settings.device)
                small = model if normalize is None else gs.compact(model, x[:2], check_latency=False).model.eval()
                with torch.inference_mode():
                    accuracy = float((small(x).argmax(1) == y).float().mean())
                counts = {key: gs.measure.count(net, x[:1]) for key, net in (("before", model), ("after", small))}
                found.append(
                    {
                        "model": name, "seed": seed, "normalize": normalize or DENSE, "accuracy": accuracy,
                        "flops": counts["after"].flops / counts["before"].flops,
                        "parameters": counts["after"].parameters / counts["before"].parameters,
                    }
                )  # fmt: skip
        for kind in (DENSE, *NORMALIZE):
            mine = [row for row in found if row["normalize"] == kind]
            means = {key: statistics.mean(row[key] for row in mine) for key in ("accuracy", "flops", "parameters")}
            found.append({"model": name, "seed": MEAN, "normalize": kind, **means})
        out += found
    return out


def scoring(rows: Rows) -> str:
    """One line per network and `normalize`, one column per seed."""
    by_seed = {(row["model"], row["normalize"], row["seed"]): row["accuracy"] for row in rows}

    def accuracy(seed: int | str) -> Column:
        head = f"{MEAN} %" if seed == MEAN else f"seed {seed} %"
        return head, lambda row: f"{100 * by_seed[row['model'], row['normalize'], seed]:.2f}"

    return table(
        [row for row in rows if row["seed"] == MEAN],
        [
            ("model", value("model")),
            ("channels compared by", lambda row: "(dense)" if row["normalize"] == DENSE else f'`"{row["normalize"]}"`'),
            *map(accuracy, dict.fromkeys(row["seed"] for row in rows)),
            ("FLOPs of dense", value("flops", ".2f")), ("parameters of dense", value("parameters", ".2f")),
        ],
    )  # fmt: skip


SECTION = Section(rows, Table(scoring, note=""))

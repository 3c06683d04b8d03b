"""What is written down after each epoch: a point of the curves, and now and then the density of every channel."""

from __future__ import annotations

from typing import Any

import torch

from gossamer.cli.train.loop import Stage, accuracy
from gossamer.data import Splits

SNAPSHOTS = 8
CELLS = 60_000


def channel_densities(method: Any) -> dict[str, list[float | None]]:
    """Share of the incoming weights in use for each channel of each weight; None for a channel that was removed.

    A weight whose first axis is no channel axis of a removable group still shows its rows.
    """
    gone = removed(method, method.channels())
    cut = removed(method, method.removed.present()) if method.removed else {}
    out: dict[str, list[float | None]] = {}
    for name, mask in method.masks.items():
        if mask.dim() < 2:
            continue
        dead, absent = gone.get(name, frozenset()), cut.get(name, frozenset())
        here = [i for i in range(method.shapes[name][0]) if i not in absent]  # rows of the original weight
        shares = dict(zip(here, mask.flatten(1).float().mean(1).tolist(), strict=True))
        out[name.removesuffix(".weight")] = [
            None if i in dead else round(shares[i], 4) for i in range(method.shapes[name][0])
        ]
    return out


def removed(method: Any, alive: dict[str, torch.Tensor]) -> dict[str, frozenset[int]]:
    """Rows (positions on axis 0) of each original weight that belong to channels not in `alive`."""
    rows: dict[str, set[int]] = {}
    for group in method.graph.groups if alive else ():
        if group.name not in alive:
            continue
        dead = (~alive[group.name]).nonzero().flatten()
        for member in group.members:
            if member.role == "writer" and member.axis == 0:
                rows.setdefault(member.tensor, set()).update(member.index[dead].flatten().tolist())
    return {name: frozenset(places) for name, places in rows.items()}


def snapshot(stage: Stage) -> None:
    """Keep the present density of every channel, at most `SNAPSHOTS` times and fewer for networks of many channels."""
    if stage.method is not None:
        stage.snapshots.append({"step": stage.step, "density": channel_densities(stage.method)})


def snapshot_epochs(epochs: int, channels: int) -> frozenset[int]:
    """After which epochs (1 is the first) a snapshot is due; the last is always among them."""
    count = max(1, min(epochs, SNAPSHOTS - 1, CELLS // max(1, channels) - 1))
    return frozenset(max(1, round((i + 1) * epochs / count)) for i in range(count))


def epoch(stage: Stage, data: Splits, *, number: int, steps: int) -> dict[str, float]:
    """Add a point to the curve after `number` epochs of `steps` steps each, and return it; no loss before the first."""
    point: dict[str, float] = {
        "step": stage.step,
        "epoch": number,
        **({"loss": stage.loss_sum / steps} if number else {}),
        "accuracy": accuracy(stage.model, data.test_x, data.test_y),
    }
    if stage.method is not None:
        point["density"] = stage.method.density()
        alive = stage.method.channels()
        if alive:
            point["channels"] = sum(int(a.sum()) for a in alive.values()) / sum(len(a) for a in alive.values())
    stage.curve.append(point)
    return point

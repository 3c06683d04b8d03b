"""Measure the trained networks: what they get right, what they weigh, how long they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gossamer import measure
from gossamer.cli.train.config import Train
from gossamer.cli.train.loop import accuracy
from gossamer.data import Splits


def table(networks: Mapping[str, nn.Module], data: Splits, *, untrained: bool) -> dict[str, dict[str, Any]]:
    """Accuracy, parameters, nonzeros, bytes and FLOPs of one example for each network.

    `untrained` leaves out the accuracy of the dense network, which was not trained then.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, model in networks.items():
        known = not (untrained and name == "dense")
        right = accuracy(model, data.test_x, data.test_y) if known else None
        out[name] = {"accuracy": right, **measure.count(model, data.test_x[:1]).to_dict()}
    return out


def _forward(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    model.eval()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    return forward


def timings(networks: Mapping[str, nn.Module], data: Splits, config: Train) -> dict[str, dict[str, Any]]:
    """Interleaved times of one example (`latency`) and of a batch (`throughput`), the A/A control beside them."""
    out = {}
    for key, batch in (("latency", 1), ("throughput", config.measure_batch)):
        # Test images repeated when there are fewer than a batch: time does not depend on their content.
        x = data.test_x[torch.arange(batch, device=data.test_x.device) % len(data.test_x)]

        calls = {name: _forward(model, x) for name, model in networks.items()}
        comparison = measure.interleave(calls, baseline="dense", reps=config.reps)
        out[key] = {"batch": batch, **comparison.to_dict(), "faster": comparison.faster("compact")}
    return out


def add_timings(table: dict[str, dict[str, Any]], timings: dict[str, dict[str, Any]]) -> None:
    """Put the median latency in seconds and the throughput in examples a second into the table."""
    for key, timing in timings.items():
        for row in timing["rows"]:
            value = row["median"] if key == "latency" else timing["batch"] / row["median"]
            table[row["name"]][key] = value

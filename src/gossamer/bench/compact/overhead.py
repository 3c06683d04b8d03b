"""What a training method costs: the step between updates, and the update itself, on ResNet-50.

Dense and sparse steps run in turn on two copies of the network. An update is one call that both drops and grows over
all weights; its time is that step's time minus the median ordinary step, quoted in dense steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.bench.cells import entry, milliseconds, value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.measure import clock

DENSE = "dense"
METHODS = tuple(name for name in gs.training.METHODS if name != "static")  # whose mask never changes


def _method(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, every: int):
    if name == "chase":
        return gs.training.Chase(
            model, optimizer, density=0.1, channel_sparsity=0.4, total_steps=100_000, explore_every=every,
            channel_every=every, example_inputs=x[:1], seed=0,
        )  # fmt: skip
    options: dict[str, Any] = {"density": 0.1, "total_steps": 100_000, "update_every": every, "seed": 0}
    if name == "srigl":
        options["example_inputs"] = x[:1]
    return gs.training.METHODS[name](model, optimizer, **options)


def _build(settings: Settings) -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor, torch.Tensor]:
    side, batch = (64, 2) if settings.quick else (224, 8)
    torch.manual_seed(0)
    model = gs.models.build("resnet50", input_shape=(3, side, side), classes=1000).to(settings.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(batch, 3, side, side, device=settings.device)
    return model, optimizer, x, torch.randint(0, 1000, (batch,), device=settings.device)


def rows(settings: Settings) -> Iterator[Row]:
    """One row per method: step ratio against the plain optimizer, and the update in dense steps."""
    for name in METHODS:
        dense_model, dense_optimizer, x, y = _build(settings)
        model, optimizer, _, _ = _build(settings)
        _method(name, model, optimizer, x, every=10**9)
        dense_step = training_step(dense_model, dense_optimizer, x, y)
        run = gs.measure.interleave(
            {DENSE: dense_step, name: training_step(model, optimizer, x, y)},
            baseline=DENSE, reps=settings.reps, warmup=1, seconds=45,
        )  # fmt: skip

        model, optimizer, _, _ = _build(settings)
        method = _method(name, model, optimizer, x, every=4)  # Chase explores at 4, 8, .. and removes at 2, 6, ..
        step = training_step(model, optimizer, x, y)
        seconds: dict[str, list[float]] = {}
        for _ in range(4 if settings.quick else 16):
            start = clock.now()
            step()
            took = clock.now() - start
            happened = [event["kind"] for event in method.history if event["step"] == method.step]
            seconds.setdefault("+".join(happened) or "plain", []).append(took)
        plain = statistics.median(seconds.pop("plain"))
        updates = {kind: (statistics.median(times) - plain) for kind, times in seconds.items()}
        yield {
            "model": "resnet50", "method": name, "batch": x.shape[0], **run.to_dict(),
            "update_seconds": updates,
            "update_in_dense_steps": {kind: cost / run[DENSE].median for kind, cost in updates.items()},
        }  # fmt: skip


def _over_dense(row: dict[str, Any]) -> str:
    ours, dense = (entry(row, name) for name in (row["method"], DENSE))
    return f"{ours['median'] / dense['median']:.3f}" if ours and dense else ""


COLUMNS = (
    ("method", value("method")), ("dense step ms", milliseconds(digits=0)),
    ("step between updates, over dense", _over_dense),
    ("A/A", lambda row: f"{row['control']['median'] / row['rows'][0]['median']:.3f}"),
    (
        "one event, in dense steps",
        lambda row: ", ".join(f"{kind} {cost:.2f}" for kind, cost in row["update_in_dense_steps"].items()),
    ),
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))

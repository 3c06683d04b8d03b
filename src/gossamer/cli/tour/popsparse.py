"""PopSparse on the digits: a wide layer that stores a tenth of its tiles and moves them while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench.dense import choose, settle
from gossamer.bench.matmul.training import DENSE, OURS, Fastest
from gossamer.bench.section import Settings
from gossamer.bench.step import training_step
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.report.quantity import percent, short

WIDTH, BATCH, DENSITY, BLOCK, EPOCHS = 2048, 128, 0.1, 16, 8


def network(middle: Callable[[int, int], nn.Module], width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), middle(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def sparse(width: int, density: float) -> nn.Sequential:
    return network(lambda i, o: gs.nn.BlockSparseLinear(i, o, block=BLOCK, density=density), width)


def trained(net: nn.Module, data: gs.data.Splits, epochs: int, rewires: bool = False) -> float:
    """Train on the digits; test accuracy."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    steps = epochs * -(-len(data.train_x) // BATCH)
    method = (
        gs.training.RigL(net[3], optimizer, density=DENSITY, total_steps=steps, update_every=10, seed=0)  # type: ignore[index]
        if rewires else None
    )  # fmt: skip
    for epoch in range(epochs):
        order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(BATCH):
            training_step(net, optimizer, data.train_x[part], data.train_y[part])()
    if method is not None:
        method.detach()
    with torch.inference_mode():
        return float((net(data.test_x).argmax(1) == data.test_y).float().mean())


def over_dense(net: nn.Module, width: int, x: Tensor, y: Tensor, quick: bool) -> dict[str, Any]:
    """Whole training steps over the fastest dense engine's."""
    settings = Settings(quick=quick, reps=5 if quick else 15)
    found: dict[str, Callable[[], Any]] = {}
    for name, layer in (("torch", nn.Linear), ("engines", Fastest)):
        made = network(layer, width)
        found[name] = training_step(made, torch.optim.SGD(made.parameters(), lr=0.0, momentum=0.9), x, y)
    settle(settings, found["engines"])
    calls: dict[str, Callable[[], Any]] = {}
    choose(found, calls, DENSE, settings, 6 * len(x) * width * width)
    calls[OURS] = training_step(net, torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9), x, y, F.cross_entropy)
    settle(settings, calls[OURS])
    return gs.measure.interleave(calls, baseline=DENSE, reps=settings.reps, seconds=8).to_dict()


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    width, epochs = (64, 1) if quick else (WIDTH, EPOCHS)
    data = gs.data.load("digits", seed=0)
    x, y = data.train_x[:BATCH], data.train_y[:BATCH]
    say("training the dense layer")
    accuracy = trained(network(nn.Linear, width), data, epochs)
    say("training the block-sparse layer, whose tiles move")
    net = sparse(width, DENSITY)
    ours = trained(net, data, epochs, rewires=True)
    say("timing training steps in turns")
    gain = Timed(
        f"one training step of three layers, {BATCH} digits; the middle layer is {width} x {width} and holds a tenth "
        f"of its {BLOCK} x {BLOCK} tiles",
        OURS, over_dense(net, width, x, y, quick),
    )  # fmt: skip
    loses = Timed(
        "the same step with all tiles present, where there is nothing to leave out",
        OURS, over_dense(sparse(width, 1.0), width, x, y, quick),
    )  # fmt: skip
    held = sum(p.nbytes for p in net.parameters())
    every = sum(p.nbytes for p in network(nn.Linear, width).parameters())
    facts = (
        (percent(ours, 1), f"test accuracy after {epochs} epochs; dense {percent(accuracy, 1)}"),
        (short(held, "B"), f"of parameters; dense {short(every, 'B')}"),
    )
    return Outcome(gain, loses, facts)


CARD = Card(
    "PopSparse",
    "My wide layers should hold a tenth of their weights, and cost a tenth",
    "A block-sparse layer stores only the tiles that are present; products forward and backward read only those, and "
    "the tiles move while the network trains.",
    "It loses where most tiles are present, and with tiles of one element from about a third of them on.",
    """
model.fc = gs.nn.BlockSparseLinear(in_features, out_features, block=16, density=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
method = gs.training.RigL(model.fc, optimizer, density=0.1, total_steps=steps)
...  # your training loop, as it is
""",
    "docs/products.md",
    run,
)

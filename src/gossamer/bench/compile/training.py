"""Steps of training, forward, backward and optimizer: ReLU's own zeros, and weights that are sparse in blocks.

The zeros of ReLUs are those of a chosen share; the optimizer has a learning rate of zero, so that its work is done but
the zeros stay. Block-sparse layers are `gs.nn.BlockSparseLinear`, compiled by the backend, beside the same network with
dense weights in torch's ways: what a mask on dense weights takes, less the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.cells import ratio, value
from gossamer.bench.compile import sparse_models, ways
from gossamer.bench.compile.ways import EAGER, INDUCTOR, OURS
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.bench.step import training_step

SHARES = (0.5, 0.9, 0.98)
TOKENS, BLOCK, DENSITY = 512, 32, 0.1
NAMES = (EAGER, INDUCTOR, OURS)


def _step(way: Any, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    return training_step(way, still, x, y, nn.functional.mse_loss)


def relus(settings: Settings, share: float) -> Row:
    """Four feed-forward blocks with ReLU."""
    dim, hidden = (32, 128) if settings.quick else (768, 3072)
    torch.manual_seed(0)
    model = sparse_models.FeedForwards(dim, hidden, 4)
    x, y = torch.randn(2, TOKENS, dim, generator=torch.Generator().manual_seed(1)).unbind()
    sparse_models.shift_biases(model, x, share)
    zeros = sparse_models.zeros(model, x)
    found = ways.compiled(model, names=NAMES)
    calls = {name: _step(way, model, x, y) for name, way in found.items()}
    return {"what": "ReLU", "zeros": zeros, **ways.measured(calls, settings, seconds=6, learn=30)}


def blocks(settings: Settings) -> Row:
    """A perceptron whose weights have a tenth of their blocks."""
    widths = (64, 128, 64) if settings.quick else (1024, 4096, 1024)
    torch.manual_seed(0)

    def network(layer: Callable[[int, int], nn.Module]) -> nn.Module:
        return nn.Sequential(layer(widths[0], widths[1]), nn.ReLU(), layer(widths[1], widths[2]))

    dense = network(nn.Linear)
    sparse = network(lambda i, o: gs.nn.BlockSparseLinear(i, o, block=BLOCK, density=DENSITY))
    x, y = torch.randn(TOKENS, widths[0]), torch.randn(TOKENS, widths[2])
    found = ways.compiled(dense, names=(EAGER, INDUCTOR))
    calls = {name: _step(way, dense, x, y) for name, way in found.items()}
    calls[OURS] = _step(torch.compile(sparse, backend="gossamer"), sparse, x, y)
    row = ways.measured(calls, settings, seconds=6, learn=30)
    del row["apart"]  # two networks
    return {"what": f"blocks of {BLOCK} x {BLOCK}", "zeros": 1 - DENSITY, **row}


def rows(settings: Settings) -> Iterator[Row]:
    for share in (0.9,) if settings.quick else SHARES:
        yield relus(settings, share)
    yield blocks(settings)


COLUMNS = (
    ("zeros of", value("what")), ("zeros", value("zeros", ".0%")), ("fastest dense", ways.best_dense),
    (f"`{OURS}`", ratio(OURS)),
)  # fmt: skip

SECTION = Section(rows, Table(ways.with_summary(COLUMNS)), on_gpu=False)

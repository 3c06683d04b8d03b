"""Networks, methods and batches for training on tiles, at sizes that train in milliseconds (float64)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
import gossamer.training.tiles
from gossamer.nn import BlockSparseLinear
from gossamer.training import METHODS, Method

D = torch.float64
BLOCK = (4, 8)
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {},
    "set": {"update_every": 4},
    "rigl": {"update_every": 4},
    "mest": {"update_every": 4, "sensitivity": 1.0},
    "gradual": {"update_every": 4, "initial_density": 0.6},
    "granet": {"update_every": 4, "scope": "layer"},
}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),  # does not keep zeros zero
}


def dense_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(37, 50), nn.Tanh(), nn.Linear(50, 24), nn.Tanh(), nn.Linear(24, 5)).double()


def sparse_net(dense: nn.Sequential, patterns: dict[str, gs.Pattern], capacity: int | None = None) -> nn.Sequential:
    layers = [copy.deepcopy(layer) for layer in dense]
    for name, pattern in patterns.items():
        layers[int(name[0])] = BlockSparseLinear.from_dense(dense[int(name[0])], pattern=pattern, capacity=capacity)
    return nn.Sequential(*layers)


def method_of(name: str, net: nn.Module, opt: str, **options: Any) -> tuple[torch.optim.Optimizer, Method]:
    optimizer = OPTIMIZERS[opt](net.parameters())
    arguments = {"density": 0.4, "total_steps": 24, "exclude": ["4.weight"], **SETTINGS[name], **options}
    return optimizer, METHODS[name](net, optimizer, **arguments)


def batch(t: int, n: int = 16) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(t)
    return torch.randn(n, 37, generator=g, dtype=torch.float64), torch.randint(5, (n,), generator=g)


def backward(net: nn.Module, x: Tensor, y: Tensor) -> None:
    nn.functional.cross_entropy(net(x), y).backward()


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for t in range(first, last):
        optimizer.zero_grad()
        backward(net, *batch(t))
        optimizer.step()


def tile_masks(method: Method) -> list[Tensor]:
    """bool[tile_rows, tile_cols] per layer, whether it has a mask or tiles."""
    return [layer.active().view(layer.grid) for layer in method.layers]


def make(optimizer: str = "momentum", **options: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, Method]:
    torch.manual_seed(0)
    net = nn.Sequential(
        BlockSparseLinear(37, 50, block=BLOCK, density=0.4), nn.Tanh(),
        BlockSparseLinear(50, 24, block=BLOCK, density=0.4), nn.Tanh(), nn.Linear(24, 5),
    ).double()  # fmt: skip
    return net, *method_of(options.pop("name", "rigl"), net, optimizer, **options)

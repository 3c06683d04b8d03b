"""Any module that says by the protocol how its tiles are moved is trained as `BlockSparseLinear` is."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.nn import BlockSparseLinear
from gossamer.nn.block_sparse.gradient_capture import Captured
from gossamer.nn.block_sparse.slot_remapping import remap_, slot_sources, states_of
from gossamer.nn.rewirable import Rewirable
from gossamer.pattern import Pattern
from gossamer.training import RigL


class Unpacked(nn.Module):
    """A linear layer of tiles that shares no class with BlockSparseLinear and calls its parameter otherwise."""

    rewired: ClassVar[str] = "tiles"
    row_tiles: ClassVar[int | None] = None
    shape: tuple[int, int]
    tile: tuple[int, int]

    def __init__(self, like: BlockSparseLinear) -> None:
        super().__init__()
        self.shape, self.tile, self.pattern, self.bound = like.shape, like.tile, like.pattern.with_capacity(8), 0.1
        self.tiles = nn.Parameter(like.values.detach().clone())
        self.reason: str | None = None
        self.handle: Tensor | None = None

    @property
    def capacity(self) -> int:
        return len(self.tiles)

    def why_fixed(self) -> str | None:
        return self.reason

    def update_pattern(
        self, pattern: Pattern, *, optimizer: Optimizer | None = None, overflow: Literal["error", "grow"] | None = None
    ) -> Tensor:
        new = pattern.with_capacity(self.capacity)
        source = slot_sources(self.pattern.keys(), new.keys(), new.grid[0] * new.grid[1])
        for tensor in (*(states_of(optimizer, self.tiles) if optimizer else ()), self.tiles.grad, self.tiles):
            if tensor is not None:
                remap_(tensor, source)
        self.pattern = new
        return source

    def capture_gradient(self, handle: Tensor | None) -> None:
        self.handle = handle

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.pattern.unpack(self.tiles).t()
        return y if self.handle is None else Captured.apply(y, x, self.handle)


def trained(net: nn.Sequential, steps: int = 12) -> RigL:
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    method = RigL(net, opt, density=0.5, total_steps=steps, update_every=3, distribution="uniform")
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        opt.zero_grad()
        net(torch.randn(5, 16, generator=generator, dtype=torch.float64)).square().mean().backward()
        opt.step()
    return method


def test_a_module_that_follows_the_protocol_moves_the_tiles_that_block_sparse_linear_moves() -> None:
    layer = BlockSparseLinear(16, 16, bias=False, block=4, density=0.5, seed=0).double()
    other = Unpacked(layer)
    first = layer.pattern.to_tile_mask()
    assert isinstance(other, Rewirable) and isinstance(layer, Rewirable) and not isinstance(nn.Linear(2, 2), Rewirable)
    ours, theirs = trained(nn.Sequential(layer)), trained(nn.Sequential(other))
    assert list(ours.masks) == ["0.values"] and list(theirs.masks) == ["0.tiles"]
    assert torch.equal(ours.masks["0.values"], theirs.masks["0.tiles"])
    assert torch.equal(other.pattern.to_tile_mask(), theirs.masks["0.tiles"]) and not torch.equal(
        layer.pattern.to_tile_mask(), first
    )
    torch.testing.assert_close(other.pattern.unpack(other.tiles), layer.to_dense(), rtol=1e-12, atol=1e-12)


def test_a_module_says_itself_why_its_tiles_cannot_move() -> None:
    other = Unpacked(BlockSparseLinear(16, 16, bias=False, block=4, density=0.5))
    other.reason = "it is lent to somebody"
    options: dict[str, Any] = {"density": 0.5, "total_steps": 4, "include": ["*tiles"]}
    with pytest.raises(ValueError, match=r"0\.tiles cannot be rewired: .*it is lent to somebody"):
        RigL(nn.Sequential(other), torch.optim.SGD(other.parameters(), lr=0.1), **options)


def test_a_compiled_layer_inside_a_network_is_found_once() -> None:
    net = nn.Sequential(torch.compile(BlockSparseLinear(16, 16, block=4, density=0.5), backend="eager"))
    method = RigL(net, torch.optim.SGD(net.parameters(), lr=0.1), density=0.5, total_steps=4)
    assert list(method.masks) == ["0._orig_mod.values"]
    assert torch.equal(copy.deepcopy(net)[0].pattern.to_tile_mask(), method.masks["0._orig_mod.values"])

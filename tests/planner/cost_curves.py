"""Machines whose costs are known by formula: databases made from them, and the true cost of a choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gossamer.planner.costs.cache import Database, Key, Shape
from gossamer.planner.costs.cache import machine_of as machine
from gossamer.planner.costs.curve import Curve
from gossamer.planner.costs.occupancy import occupied_fraction
from gossamer.planner.plan import TILES
from gossamer.planner.tiles import Tile, resolve

SHAPE: Shape = (512, 512, 64)
DENSE = 1e-2
DETECT = 4e-4
RATES = {(1, 0): 1.0, (1, 64): 0.9, (32, 1): 0.8, (8, 1): 0.5, (16, 16): 0.7}
"""Speed of each product at full coverage, over dense."""


def seconds(tile: Tile | None, fraction: float) -> float:
    """The true cost of a product with the search for tiles."""
    return DENSE if tile is None else DETECT + _product(tile, fraction)


def _product(tile: Tile, fraction: float) -> float:
    return 2e-4 + DENSE * fraction / RATES[tile]


def database(wobble: Callable[[float], float] = lambda seconds: seconds, tiles: Sequence[Tile] = TILES) -> Database:
    """What tuning such a machine would give, each time passed through `wobble`."""
    out = Database(machine(), measured="a formula")
    densities = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
    out.curves[Key("matmul", "dense", SHAPE, "float32")] = Curve((1.0,), (DENSE,))
    out.curves[Key("copy", "", SHAPE, "float32")] = Curve((1.0,), (1e-3,))
    for tile in tiles:
        times = [wobble(_product(tile, density)) for density in densities]
        out.curves[Key("matmul", str(tile), SHAPE, "float32")] = Curve.fit(densities, times)
        out.curves[Key("detect", str(tile), SHAPE, "float32")] = Curve((0.0,), (DETECT,))
    return out


def measure(tiles: Sequence[Tile | None], a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """The true costs at the exact coverage of a."""
    names = {resolve(tile, (a.shape[0], a.shape[1])): tile for tile in RATES}
    return [seconds(None, 1.0) if tile is None else seconds(names[tile], occupied_fraction(a, tile)) for tile in tiles]

"""Seconds of each alternative to do a product: from curves measured on this machine, else from a roofline.

Measured times are taken from the nearest measured shape and scaled by the work. Dense and every candidate come from
the same shape and the same source, because only their ratios decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gossamer.planner.costs.cache import Database, Key, Shape
from gossamer.planner.costs.curve import Curve
from gossamer.planner.tiles import Tile

FAR = 5.0
"""Doublings between a measured shape and the one asked for, summed over the three sizes, that are still trusted."""

_MOST_PRICES = 1024

# Without measurements: what processors of the last years reach, with torch's dense product. Only ratios matter.
_LANES = {"avx512": 16, "avx512_bf16": 16, "avx512_amx": 16, "avx2": 8, "scalar": 4}
_HERTZ = 3.0e9
_BYTES_PER_SECOND = 1.5e10
_GPU_FLOPS = {"float32": 4.0e13, "bfloat16": 4.0e14, "float16": 4.0e14}
_GPU_BYTES_PER_SECOND = 2.0e12
_LAUNCH = {"cpu": 5e-6, "cuda": 2e-5}
_SIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Costs:
    """Costs at one shape (rows, k, n) and dtype. `source` is "measured" or "prior"; `basis` says it in words."""

    source: Literal["measured", "prior"]
    basis: str
    dense: float
    products: dict[Tile, Curve]
    detects: dict[Tile, Curve]
    copy: float


def costs(database: Database, tiles: Sequence[Tile], shape: Shape, dtype: str, device: str) -> Costs:
    """What dense, and the product and the search at each tile, cost at this shape."""
    if database.curves != database.priced:  # equal where no curve was added or replaced, which are the same objects
        database.priced = dict(database.curves)
        database.prices.clear()
    key = (tuple(tiles), shape, dtype, device)
    if key not in database.prices:
        if len(database.prices) >= _MOST_PRICES:
            database.prices.clear()
        database.prices[key] = _costs(database, tiles, shape, dtype, device)
    return database.prices[key]


def _costs(database: Database, tiles: Sequence[Tile], shape: Shape, dtype: str, device: str) -> Costs:
    needed = [("matmul", "dense"), ("copy", ""), *((op, str(tile)) for tile in tiles for op in ("matmul", "detect"))]
    known = database.shapes(needed, dtype, device)
    if known:
        nearest = min(known, key=lambda other: _doublings(shape, other))
        if _doublings(shape, nearest) <= FAR:
            return _measured(database, tiles, shape, nearest, dtype, device)
    return _prior(database, tiles, shape, dtype, device)


def _doublings(a: Shape, b: Shape) -> float:
    return sum(abs(math.log2(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))


def _scaled(curve: Curve, factor: float) -> Curve:
    return Curve(curve.densities, tuple(time * factor for time in curve.seconds))


def _measured(
    database: Database, tiles: Sequence[Tile], shape: Shape, nearest: Shape, dtype: str, device: str
) -> Costs:
    (rows, k, n), (rows_then, k_then, n_then) = shape, nearest
    product = rows * k * n / (rows_then * k_then * n_then)
    matrix = rows * k / (rows_then * k_then)

    def of(op: str, alternative: str) -> Curve:
        return database.curves[Key(op, alternative, nearest, dtype, device)]

    basis = f"on this machine, {database.measured}, at {_times(nearest)}"
    return Costs(
        "measured", basis if shape == nearest else f"{basis}, scaled by the work",
        dense=of("matmul", "dense")(1.0) * product,
        products={tile: _scaled(of("matmul", str(tile)), product) for tile in tiles},
        detects={tile: _scaled(of("detect", str(tile)), matrix) for tile in tiles},
        copy=of("copy", "")(1.0) * matrix,
    )  # fmt: skip


def _times(shape: Shape) -> str:
    rows, k, n = shape
    return f"{rows} x {k} @ {k} x {n}"


def fixed_share(tile: Tile) -> float:
    """What a product with no tile at all still costs, as a share of the dense one, without a measurement.

    The shape of these numbers is that of a Zen 5 core: bands of few rows reuse each row of b they fetch less often.
    The slope is not: there our product is faster than torch's at full coverage, which need not hold elsewhere, so
    the estimate says about as fast.
    """
    rows, cols = tile
    if rows == 1:
        return 0.03
    return 0.07 if cols > 1 else 0.05 + 1.0 / max(rows, 8) if rows else 0.05


def _line(empty: float, rise: float) -> Curve:
    return Curve((0.0, 1.0), (empty, empty + rise))


def _prior(database: Database, tiles: Sequence[Tile], shape: Shape, dtype: str, device: str) -> Costs:
    rows, k, n = shape
    size, machine = _SIZE.get(dtype, 4), database.machine
    if device == "cpu":
        threads = int(machine.get("threads") or 1)
        lanes = _LANES.get(str(machine.get("isa")), 4) * 4 / size
        rate, bandwidth = threads * lanes * 4 * _HERTZ, _BYTES_PER_SECOND * min(threads, 4)
    else:
        rate, bandwidth = _GPU_FLOPS.get(dtype, 2.0e13), _GPU_BYTES_PER_SECOND
    launch = _LAUNCH["cpu" if device == "cpu" else "cuda"]
    flops, bytes_moved = 2.0 * rows * k * n, size * (rows * k + k * n + rows * n)
    dense = launch + max(flops / rate, bytes_moved / bandwidth)
    matrix = launch + rows * k * size / bandwidth
    output = launch + size * rows * n / bandwidth
    return Costs(
        "prior", "a roofline estimate; `gossamer tune` measures this machine in seconds",
        dense=dense,
        products={tile: _line(output + dense * fixed_share(tile), dense) for tile in tiles},
        detects={tile: Curve((0.0,), (matrix,)) for tile in tiles},
        copy=2.0 * matrix,
    )  # fmt: skip

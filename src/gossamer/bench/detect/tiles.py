"""Detecting the nonzero tiles of a dense tensor, against the time of reading that tensor once.

The yardstick is the fastest plain read this library has (`kernels.cpu.read`, all threads; on CUDA, `sum`). The
baseline is what a user would write in torch: `(x != 0).view(...).any(...)` and then `nonzero`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

import gossamer as gs
from gossamer.bench.cells import Column, milliseconds, of, tile, value
from gossamer.bench.section import Row, Section, Settings, Table
from gossamer.kernels.cpu.read import read

TILES = ((1, 1), (1, 32), (32, 1), (2, 2), (4, 4), (8, 8), (16, 16), (64, 64))
DENSITIES = (0.0, 1 / 16, 1 / 2, 1.0)
READ, OURS, TORCH = "read once", "gs.detect", "torch"
COPIES = 8  # of 64 MiB: what a call reads has left the caches since it was read last


def _tiled_input(rows: int, cols: int, tile: tuple[int, int], density: float, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows // tile[0], cols // tile[1], generator=generator) < density
    values = torch.randn(rows, cols, generator=generator)
    return (values * mask.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)).to(device)


def _torch_detect(x: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    rows, cols = x.shape
    blocks = (x != 0).view(rows // tile[0], tile[0], cols // tile[1], tile[1])
    return blocks.any(dim=3).any(dim=1).nonzero()


def _rotating(op: Callable[[torch.Tensor], Any], copies: list[torch.Tensor]) -> Callable[[], Any]:
    """`op` on the next copy at every call."""
    turn = itertools.cycle(copies)
    return lambda: op(next(turn))


def _read(x: torch.Tensor) -> None:
    if x.device.type == "cpu":
        read(x)
    else:
        x.sum()


def rows(settings: Settings) -> Iterator[Row]:
    """One row per tile and density: ours, the plain read, and torch."""
    size = 512 if settings.quick else 4096
    for shape, density in product(TILES, DENSITIES):
        x = _tiled_input(size, size, shape, density, settings.device)
        # What a user with a bound on the density reserves; every slot is fresh memory that must be paid for.
        capacity = round(1.1 * gs.detect(x, tile=shape).nnz) + 1
        copies = [x.clone() for _ in range(COPIES)]
        calls = {
            READ: _rotating(_read, copies),
            OURS: _rotating(partial(gs.detect, tile=shape, capacity=capacity), copies),
            TORCH: _rotating(partial(_torch_detect, tile=shape), copies),
        }
        run = gs.measure.interleave(calls, baseline=READ, reps=settings.reps, seconds=20)
        yield {"shape": [size, size], "tile": list(shape), "density": density, **run.to_dict()}


def _reads(name: str, digits: int) -> Column:
    """A time in units of reading the tensor once."""
    head = f"{name}, in reads" if name == TORCH else f"`{name}`, in reads"
    return head, of(name, lambda e: f"{1 / e['ratio']:.{digits}f}")


COLUMNS = (
    ("tile", tile), ("density of tiles", value("density", ".3g")), ("one read ms", milliseconds(READ)),
    _reads(OURS, 2), _reads(TORCH, 1), ("A/A", lambda row: f"{row['control']['ratio']:.2f}"),
)  # fmt: skip


SECTION = Section(rows, Table(COLUMNS))

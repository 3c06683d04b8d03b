"""The one place where tensors are checked before their addresses are handed to C++.

Rules: CPU, strided, contiguous, the promised number of dimensions; nothing is copied or converted behind the caller's
back. Offsets and indices of a pattern must lie in range before any of them is used as an address; that no tile repeats,
and that the orders and divisions of work made here are what they should be, is checked with the environment variable
GOSSAMER_CHECK=1.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

# torch comes first: its libgomp is then the one that the extension binds to, and both share one pool of threads.
from gossamer import _native as native

__all__ = ["FLOATS", "INTEGERS", "check_pattern", "index_dtype", "matrix", "native", "tensor", "tile", "tiles"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
ELEMENT_SIZES = (1, 2, 4, 8)


def tensor(
    value: Tensor, name: str, *, ndim: int | None = None, dtypes: tuple[torch.dtype, ...] = (), contiguous: bool = True
) -> Tensor:
    """Return `value` if the kernels can take its address, else raise TypeError or ValueError naming it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, got device {value.device}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be strided, got layout {value.layout}")
    if dtypes and value.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.itemsize not in ELEMENT_SIZES or value.dtype.is_complex:
        raise TypeError(f"{name} must have real elements of 1, 2, 4 or 8 bytes, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(value.shape)}")
    if contiguous and not value.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got shape {tuple(value.shape)} with strides {value.stride()}; "
            f"call .contiguous() first"
        )
    if value.is_neg():
        raise ValueError(f"{name} must not be a lazily negated view; call .resolve_neg() first")
    return value


def matrix(value: Tensor, name: str, *, dtypes: tuple[torch.dtype, ...] = ()) -> tuple[int, bool]:
    """(stride, transposed) of a matrix with a unit stride: elements from a row (transposed: column) to the next."""
    tensor(value, name, ndim=2, dtypes=dtypes, contiguous=False)
    (rows, cols), (down, along) = value.shape, value.stride()
    if along == 1 or cols <= 1:
        return (down if rows > 1 else cols), False
    if down == 1 or rows <= 1:
        return along, True
    raise ValueError(
        f"{name} must have a stride of 1 along its rows or its columns, got shape {tuple(value.shape)} "
        f"with strides {value.stride()}; call .contiguous() first"
    )


def tile(bm: int, bn: int) -> None:
    if bm < 1 or bn < 1:
        raise ValueError(f"tile must be at least (1, 1), got ({bm}, {bn})")


def tiles(rows: int, cols: int, bm: int, bn: int) -> tuple[int, int]:
    """Rows and columns of the grid of tiles; edge tiles may be ragged."""
    return -(-rows // bm), -(-cols // bn)


def index_dtype(tile_cols: int) -> torch.dtype:
    """The narrowest dtype that names every tile column."""
    return torch.uint16 if tile_cols <= 65536 else torch.int32


def check_pattern(offsets: Tensor, indices: Tensor, rows: int, cols: int, bm: int, bn: int) -> None:
    """Shapes, dtypes and the ranges of offsets and used indices; that no tile repeats, under GOSSAMER_CHECK=1."""
    tile(bm, bn)
    tensor(offsets, "offsets", ndim=1, dtypes=(torch.int64,))
    tensor(indices, "indices", ndim=1, dtypes=(torch.uint16, torch.int32))
    tile_rows, tile_cols = tiles(rows, cols, bm, bn)
    if offsets.numel() != tile_rows + 1:
        raise ValueError(
            f"offsets must have {tile_rows + 1} entries for {rows} rows in tiles of {bm}, got {offsets.numel()}"
        )
    if not native.in_range(
        offsets.data_ptr(), tile_rows, indices.data_ptr(), indices.itemsize, tile_cols, indices.numel()
    ):
        if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must start at 0 and never decrease, got {offsets.tolist()[:16]}")
        used = indices[: int(offsets[-1])].to(torch.int32)
        at = int(((used < 0) | (used >= tile_cols)).nonzero()[0])
        raise ValueError(f"indices[{at}] is {int(used[at])}, expected 0 <= index < {tile_cols} tile columns")
    if os.environ.get("GOSSAMER_CHECK") != "1":
        return
    used = indices[: int(offsets[-1])].to(torch.int32)
    held = torch.arange(tile_rows).repeat_interleave(offsets.diff())[: len(used)]
    keys = (held * tile_cols + used).sort().values
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if len(repeated):
        row, column = divmod(int(repeated[0]), tile_cols)
        raise ValueError(f"indices must not repeat a tile: tile row {row} lists column {column} more than once")

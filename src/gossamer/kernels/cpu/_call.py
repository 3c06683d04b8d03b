"""The one place where tensors are checked before their addresses are handed to C++.

Rules: CPU, strided, contiguous, the promised number of dimensions; nothing is copied or converted behind the caller's
back. Whatever becomes an address or ends a loop is checked at every call, for the tensors that hold it may have been
written, or loaded from a file, since the last: offsets, indices, lists of rows, divisions of labour, and that no
product of sizes overflows. That costs one stream over an index (csrc/in_range.cc). That no tile repeats is checked
where a kernel counts on it, and everywhere with the environment variable GOSSAMER_CHECK=1.
"""

from __future__ import annotations

import os
from math import prod

import torch
from torch import Tensor

# torch comes first: its libgomp is then the one that the extension binds to, and both share one pool of threads.
from gossamer import _native as native

__all__ = [
    "FLOATS",
    "INTEGERS",
    "check_list",
    "check_no_repeats",
    "check_pattern",
    "check_work",
    "count",
    "index_dtype",
    "matrix",
    "native",
    "tensor",
    "tile",
    "tiles",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
ELEMENT_SIZES = (1, 2, 4, 8)
MOST = 2**56
"""Elements of anything. More cannot be stored; numbers up to here can be multiplied by a few others within 64 bits."""


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
    if not 0 < value.numel() <= MOST and prod(max(size, 1) for size in value.shape) > MOST:
        raise ValueError(
            f"{name} must have sizes whose product, leaving out zeros, is at most 2**56, got {value.shape}"
        )
    if value.data_ptr() == 0 and value.numel() > 0:
        raise ValueError(f"{name} has {value.numel()} elements but no memory: its storage was freed")
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


def count(value: int, name: str) -> None:
    """Refuse a number of things that there cannot be."""
    if not 0 <= value <= MOST:
        raise ValueError(f"{name} must be at least 0 and at most 2**56, got {value}")


def tile(bm: int, bn: int) -> None:
    if bm < 1 or bn < 1:
        raise ValueError(f"tile must be at least (1, 1), got ({bm}, {bn})")


def tiles(rows: int, cols: int, bm: int, bn: int) -> tuple[int, int]:
    """Rows and columns of the grid of tiles; edge tiles may be ragged."""
    return -(-rows // bm), -(-cols // bn)


def index_dtype(tile_cols: int) -> torch.dtype:
    """The narrowest dtype that names every tile column."""
    if tile_cols > 2**31:
        raise ValueError(
            f"indices are at most int32, which names 2**31 tile columns, got {tile_cols}: take wider tiles"
        )
    return torch.uint16 if tile_cols <= 65536 else torch.int32


def check_pattern(offsets: Tensor, indices: Tensor, rows: int, cols: int, bm: int, bn: int) -> None:
    """Shapes, dtypes, the ranges of offsets and of the indices that they use; with GOSSAMER_CHECK=1 also repeats."""
    tile(bm, bn)
    tensor(offsets, "offsets", ndim=1, dtypes=(torch.int64,))
    tensor(indices, "indices", ndim=1, dtypes=(torch.uint16, torch.int32))
    tile_rows, tile_cols = tiles(rows, cols, bm, bn)
    capacity = indices.numel()
    if (rows | cols | bm | bn | capacity) >> 18:  # only then can a product be large
        index_dtype(tile_cols)
        if bm * bn * max(capacity, 1) > MOST or max(rows, 1) * max(cols, 1) > MOST:
            raise ValueError(
                f"tile must make at most 2**56 elements of all slots and of the matrix, got ({bm}, {bn}) for "
                f"{capacity} slots and {rows} x {cols} elements"
            )
    if offsets.numel() != tile_rows + 1:
        raise ValueError(
            f"offsets must have {tile_rows + 1} entries for {rows} rows in tiles of {bm}, got {offsets.numel()}"
        )
    if not native.in_range(
        offsets.data_ptr(), tile_rows, True, indices.data_ptr(), indices.itemsize, capacity, tile_cols,
        torch.get_num_threads(),
    ):  # fmt: skip
        if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must start at 0 and never decrease, got {offsets.tolist()[:16]}")
        if offsets[-1] > capacity:
            raise ValueError(f"offsets must end at most at the capacity of {capacity} tiles, got {int(offsets[-1])}")
        _complain("indices", "index", indices[: int(offsets[-1])], 0, tile_cols, " tile columns")
    if os.environ.get("GOSSAMER_CHECK") == "1":
        check_no_repeats(offsets, indices, tile_cols)


def check_no_repeats(offsets: Tensor, indices: Tensor, tile_cols: int) -> None:
    """Refuse a tile row of a checked pattern that lists a column twice."""
    bits = torch.empty(-(-tile_cols // 64), dtype=torch.int64)
    row = native.repeated(
        offsets.data_ptr(), offsets.numel() - 1, indices.data_ptr(), indices.itemsize, tile_cols, bits.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if row < 0:
        return
    columns = indices[int(offsets[row]) : int(offsets[row + 1])].to(torch.int32).sort().values
    column = int(columns[1:][columns[1:] == columns[:-1]][0])
    raise ValueError(f"indices must not repeat a tile: tile row {row} lists column {column} more than once")


def check_list(
    places: Tensor | None, name: str, offsets: Tensor, bound: int, what: str = "row", *, once: bool = False
) -> None:
    """Refuse offsets of groups that are none, and places that they use outside [0, bound) or, if `once`, name twice.

    None stands for the positions themselves.
    """
    address, size, room = (0, 0, bound) if places is None else (places.data_ptr(), places.itemsize, places.numel())
    at, groups = offsets.data_ptr(), offsets.numel() - 1
    if not native.in_range(at, groups, False, address, size, room, bound, torch.get_num_threads()):
        first, end = int(offsets[0]), int(offsets[-1])
        if first < 0 or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must not be negative and never decrease, got {offsets.tolist()[:16]}...")
        if end > room or places is None:
            raise ValueError(f"offsets must end at most at {room}, the positions in {name}, got {end}")
        _complain(name, what, places[first:end], first, bound)
    if once and places is not None:
        bits = torch.empty(-(-bound // 64), dtype=torch.int64)
        if not native.named_once(at, groups, address, size, bound, bits.data_ptr()):
            used = places[int(offsets[0]) : int(offsets[-1])].sort().values
            twice = int(used[1:][used[1:] == used[:-1]][0])
            raise ValueError(f"{name} must not name a {what} twice, got {what} {twice} more than once")


def _complain(name: str, what: str, used: Tensor, first: int, bound: int, unit: str = "") -> None:
    wide = used.to(torch.int64)
    at = int(((wide < 0) | (wide >= bound)).nonzero()[0])
    raise ValueError(f"{name}[{first + at}] is {int(wide[at])}, expected 0 <= {what} < {bound}{unit}")


def check_work(work: Tensor, offsets: Tensor, order: Tensor | None, values: Tensor) -> int:
    """Refuse a division of labour that is not one of this checked pattern; return its number of segments.

    It names each slot once, in segments that lie inside their tile row. Slots whose values are zero may be left out.
    """
    tensor(work, "work", ndim=3, dtypes=(torch.int64,))
    if work.shape[2] != 3:
        raise ValueError(f"work must have shape [parts, segments, 3], got {tuple(work.shape)}")
    segments, tile_rows, used = work.shape[0] * work.shape[1], offsets.numel() - 1, int(offsets[-1])
    bits = torch.empty(-(-used // 64), dtype=torch.int64)
    named = native.work_in_range(offsets.data_ptr(), tile_rows, work.data_ptr(), segments, bits.data_ptr())
    if named == used:
        return segments
    if named < 0:
        row = work[..., 0].max()
        if row >= tile_rows:
            raise ValueError(f"work must name tile rows below {tile_rows}, got {int(row)}: it is another pattern's")
    else:
        left_out = ((bits.unsqueeze(1) >> torch.arange(64)) & 1).flatten()[:used].logical_not().nonzero().squeeze(1)
        if not values[left_out if order is None else order[left_out].long()].any():
            return segments
    raise ValueError(
        "work must hold every slot once, in segments that lie inside their tile row; only slots whose values are zero "
        "may be left out (Encoded.keep)"
    )

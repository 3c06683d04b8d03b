"""The one place where tensors are checked before their addresses are handed to C++.

Rules: CPU, strided, contiguous, the promised number of dimensions; nothing is copied or converted behind the caller's
back. Whatever becomes an address or ends a loop is checked at every call, for the tensors that hold it may have been
written, or loaded from a file, since the last: offsets, indices, lists of rows, work partitions, and that no product of
sizes overflows. The numbers are checked by the kernel itself, before it uses them (csrc/slots.h); if it answers False,
what is wrong is looked for here. That no tile repeats is checked where a kernel counts on it, and everywhere if the
environment variable GOSSAMER_CHECK is 1 when gossamer is imported.
"""

from __future__ import annotations

import os
from math import prod
from typing import NoReturn

import torch
from torch import Tensor

# torch comes first: its libgomp is then the one that the extension binds to, and both share one pool of threads.
from gossamer import _native as native

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
ELEMENT_SIZES = (1, 2, 4, 8)
CHECK_REPEATS = os.environ.get("GOSSAMER_CHECK") == "1"
Index = tuple[int, int, int, int, int, int, int, int]
"""Addresses of offsets and indices, bytes of an index, capacity, rows, cols, bm, bn: `Index` in csrc/kernels.h."""
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


def bits(value: Tensor, x: Tensor) -> None:
    """Refuse what is not one bit for each element of x[..., C]: int32[..., ceil(C / 32)]."""
    tensor(value, "bits", dtypes=(torch.int32,))
    expected = (*x.shape[:-1], -(-x.shape[-1] // 32))
    if tuple(value.shape) != expected:
        raise ValueError(f"bits must have shape {expected}, got {tuple(value.shape)}")


def bias(value: Tensor, size: int, dtypes: tuple[torch.dtype, ...]) -> None:
    tensor(value, "bias", ndim=1, dtypes=dtypes)
    if value.numel() != size:
        raise ValueError(f"bias must have {size} entries, got {value.numel()}")


def address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def matrix(value: Tensor, name: str, *, dtypes: tuple[torch.dtype, ...] = ()) -> tuple[int, int, bool]:
    """(address, stride, transposed) of a matrix with a unit stride: `Operand` in csrc/kernels.h."""
    tensor(value, name, ndim=2, dtypes=dtypes, contiguous=False)
    (rows, cols), (down, along) = value.shape, value.stride()
    if along == 1 or cols <= 1:
        return value.data_ptr(), (down if rows > 1 else cols), False
    if down == 1 or rows <= 1:
        return value.data_ptr(), along, True
    raise ValueError(
        f"{name} must have a stride of 1 along its rows or its columns, got shape {tuple(value.shape)} "
        f"with strides {value.stride()}; call .contiguous() first"
    )


def classifier(
    values: Tensor, indices: Tensor, bias: Tensor | None, group: int, batch: int, cols: int
) -> tuple[int, int, int, int, int, int, int]:
    """Shapes and dtypes of a classifier of fixed fan-in; returns it as the kernels take it (`Classifier` in
    csrc/kernels.h). Its numbers are checked by the kernel that reads them."""
    tensor(values, "values", ndim=2, dtypes=(torch.float32, torch.bfloat16))
    tensor(indices, "indices", ndim=2, dtypes=(torch.uint16, torch.int32))
    labels, k = values.shape
    if group < 1 or tuple(indices.shape) != (-(-labels // group), k):
        raise ValueError(
            f"indices must have the shape {(-(-labels // max(group, 1)), k)} for {labels} labels in groups of {group}, "
            f"got {tuple(indices.shape)}"
        )
    if bias is not None and tensor(bias, "bias", ndim=1, dtypes=(torch.float32,)).shape[0] != labels:
        raise ValueError(f"bias must have {labels} entries, got {bias.shape[0]}")
    if max(labels, 1) * max(batch, 1) * max(k, 1) > MOST:
        raise ValueError(f"labels * batch * fan-in must be at most 2**56, got {labels} * {batch} * {k}")
    return batch, cols, labels, k, group, indices.itemsize, values.itemsize


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


def check_pattern(offsets: Tensor, indices: Tensor, rows: int, cols: int, bm: int, bn: int) -> Index:
    """Shapes and dtypes of a pattern; returns it as the kernels take it (`Index` in csrc/kernels.h).

    Its numbers are checked by the kernel that reads them: what answers False is explained by `refuse_pattern`.
    """
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
    index = (offsets.data_ptr(), indices.data_ptr(), indices.itemsize, capacity, rows, cols, bm, bn)
    if CHECK_REPEATS:
        check_numbers(offsets, indices, tile_cols)
        check_no_repeats(offsets, indices, index)
    return index


def check_numbers(offsets: Tensor, indices: Tensor, tile_cols: int) -> None:
    """Refuse offsets that are none of this capacity, and indices that they use and that name no tile column."""
    capacity = indices.numel()
    if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must start at 0 and never decrease, got {offsets.tolist()[:16]}")
    if offsets[-1] > capacity:
        raise ValueError(f"offsets must end at most at the capacity of {capacity} tiles, got {int(offsets[-1])}")
    check_bounds("indices", "index", indices[: int(offsets[-1])], 0, tile_cols, " tile columns")


def refuse_pattern(offsets: Tensor, indices: Tensor, index: Index, *, once: bool = False) -> NoReturn:
    """Say what a kernel found wrong with the numbers of a pattern, of which `once`: no tile may be named twice."""
    check_numbers(offsets, indices, tile_columns(index))
    if once:
        check_no_repeats(offsets, indices, index)
    refuse_changed("offsets and indices")


def refuse_changed(names: str) -> NoReturn:
    raise RuntimeError(f"{names} must not change while a kernel reads them; they did, for they are right now")


def tile_columns(index: Index) -> int:
    return -(-index[5] // index[7])


def check_no_repeats(offsets: Tensor, indices: Tensor, index: Index) -> None:
    """Refuse a tile row of a checked pattern that lists a column twice."""
    bits = torch.empty(-(-tile_columns(index) // 64), dtype=torch.int64, device="cpu")
    row = native.repeated(index, bits.data_ptr(), torch.get_num_threads())
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
    room = bound if places is None else places.numel()
    first, end = int(offsets[0]), int(offsets[-1])
    if first < 0 or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets must not be negative and never decrease, got {offsets.tolist()[:16]}...")
    if end > room:
        raise ValueError(f"offsets must end at most at {room}, the positions in {name}, got {end}")
    if places is None:
        return
    check_bounds(name, what, places[first:end], first, bound)
    if once:
        used = places[first:end].sort().values
        twice = used[1:][used[1:] == used[:-1]].tolist()
        if twice:
            raise ValueError(f"{name} must not name a {what} twice, got {what} {twice[0]} more than once")


def check_bounds(name: str, what: str, used: Tensor, first: int, bound: int, unit: str = "") -> None:
    """Refuse a number of a list, of which `used` begins at position `first`, that is outside [0, bound)."""
    wide = used.to(torch.int64)
    outside = ((wide < 0) | (wide >= bound)).nonzero()
    if outside.numel():
        at = int(outside[0])
        raise ValueError(f"{name}[{first + at}] is {int(wide[at])}, expected 0 <= {what} < {bound}{unit}")


def check_work(work: Tensor, index: Index, offsets: Tensor, order: Tensor | None, values: Tensor) -> None:
    """Refuse a work partition that is not one of this pattern, whose numbers have been checked.

    It names each slot once, in segments that lie inside their tile row. Slots whose values are zero may be left out.
    """
    segments, tile_rows, used = work.shape[0] * work.shape[1], offsets.numel() - 1, int(offsets[-1])
    bits = torch.empty(-(-used // 64), dtype=torch.int64, device="cpu")
    named = native.work_in_range(index, work.data_ptr(), segments, bits.data_ptr())
    if named == used:
        return
    if named < 0:
        row = work[..., 0].max()
        if row >= tile_rows:
            raise ValueError(f"work must name tile rows below {tile_rows}, got {int(row)}: it is another pattern's")
    else:
        left_out = (
            ((bits.unsqueeze(1) >> torch.arange(64, device="cpu")) & 1)
            .flatten()[:used]
            .logical_not()
            .nonzero()
            .squeeze(1)
        )
        if not values[left_out if order is None else order[left_out].long()].any():
            return
    raise ValueError(
        "work must hold every slot once, in segments that lie inside their tile row; only slots whose values are zero "
        "may be left out (Encoded.keep)"
    )

"""Does a (offsets, indices, shape, tile) keep every promise of `Pattern`? One message per broken promise."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.pattern.algebra import keys_of
from gossamer.pattern.build import grid_of, index_dtype
from gossamer.pattern.check import check_pair


def validate(offsets: Tensor | None, indices: Tensor, shape: tuple[int, int], tile: tuple[int, int]) -> None:
    """Raise TypeError or ValueError naming the field; sortedness within a row is not required. A device sync."""
    tile_rows, tile_cols = grid_of(check_pair("shape", shape, 0), check_pair("tile", tile, 1))
    if not isinstance(indices, Tensor) or indices.dtype not in (index_dtype(tile_cols), torch.int32):
        wanted = " or ".join(sorted({"torch.int32", str(index_dtype(tile_cols))}))
        raise TypeError(
            f"indices must be {wanted} for {tile_cols} tile columns, got {getattr(indices, 'dtype', type(indices))}"
        )
    if not indices.is_contiguous():
        raise ValueError(f"indices must be contiguous, got strides {indices.stride()}")
    if offsets is None:
        _check_fan_in(indices, tile_rows, tile_cols)
        offsets = torch.arange(tile_rows + 1, device=indices.device) * indices.shape[1]
    else:
        _check_offsets(offsets, indices, tile_rows)
    present = int(offsets[-1])
    columns = indices.reshape(-1)[:present].to(torch.int64)
    outside = (columns < 0) | (columns >= tile_cols)
    if outside.any():
        raise ValueError(f"indices must be below the {tile_cols} tile columns, got {int(columns[outside][0])}")
    keys = keys_of(offsets, indices, tile_cols)[:present]
    if bool((keys[1:] > keys[:-1]).all()):  # as builders make them; a sort takes ten times as long
        return
    keys = keys.sort().values
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if repeated.numel():
        row, column = divmod(int(repeated[0]), tile_cols)
        raise ValueError(f"indices must not repeat a tile: tile row {row} lists column {column} more than once")


def _check_fan_in(indices: Tensor, tile_rows: int, tile_cols: int) -> None:
    if indices.dim() != 2 or indices.shape[0] != tile_rows or indices.shape[1] > tile_cols:
        raise ValueError(
            f"indices must have shape [{tile_rows}, k <= {tile_cols}] without offsets, got {tuple(indices.shape)}"
        )


def _check_offsets(offsets: Tensor, indices: Tensor, tile_rows: int) -> None:
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int64:
        raise TypeError(f"offsets must be torch.int64, got {getattr(offsets, 'dtype', type(offsets))}")
    if offsets.device != indices.device:
        raise ValueError(f"offsets must be on the device of indices, {indices.device}, got {offsets.device}")
    if tuple(offsets.shape) != (tile_rows + 1,):
        raise ValueError(f"offsets must have shape [{tile_rows + 1}], got {tuple(offsets.shape)}")
    if not offsets.is_contiguous():
        raise ValueError(f"offsets must be contiguous, got strides {offsets.stride()}")
    if indices.dim() != 1:
        raise ValueError(f"indices must have 1 dimension beside offsets, got shape {tuple(indices.shape)}")
    if int(offsets[0]) != 0:
        raise ValueError(f"offsets must start at 0, got {int(offsets[0])}")
    fall = (offsets.diff() < 0).nonzero()
    if fall.numel():
        at = int(fall[0])
        raise ValueError(f"offsets must never fall, got {int(offsets[at])} then {int(offsets[at + 1])} at row {at}")
    if int(offsets[-1]) > indices.numel():
        raise ValueError(f"offsets must end at or below the capacity {indices.numel()}, got {int(offsets[-1])}")

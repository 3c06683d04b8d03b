"""What every op asks of a Pattern before a kernel gets its tensors. Each kernel checks itself what these hold."""

from __future__ import annotations

from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.pattern.check import check_pair, check_tensor


def check_pattern(pattern: Pattern, name: str = "pattern") -> None:
    """A Pattern of tensors on one device: with two, the dispatcher would take one for all. Kernels look inside."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name} must be a gossamer.Pattern, got {type(pattern).__name__}")
    offsets, indices = pattern.offsets, pattern.indices
    if not isinstance(indices, Tensor) or not (offsets is None or isinstance(offsets, Tensor)):
        raise TypeError(
            f"{name} must hold tensors, got offsets {type(offsets).__name__} and indices {type(indices).__name__}"
        )
    if offsets is None:
        if indices.dim() != 2:
            raise ValueError(f"{name} without offsets must have indices [tile_rows, k], got {tuple(indices.shape)}")
    elif offsets.device != indices.device:
        raise ValueError(f"{name}.offsets must be on the device of indices, {indices.device}, got {offsets.device}")


def check_values(values: Tensor, pattern: Pattern) -> None:
    """One tile of values for each slot of the pattern."""
    check_tensor("values", values)
    expected = (pattern.capacity, *pattern.tile)
    if tuple(values.shape) != expected:
        raise ValueError(f"values must have shape [capacity, bm, bn] = {expected}, got {tuple(values.shape)}")


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    """A second operand: of the dtype and on the device of `x`."""
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} must have x's dtype {x.dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")


def check_grid(pattern: Pattern) -> None:
    """A checked pattern's tiles make as many rows of the shape as it has offsets for."""
    check_pair("pattern.shape", pattern.shape, 0)
    check_pair("pattern.tile", pattern.tile, 1)
    rows = pattern.indices.shape[0] if pattern.offsets is None else pattern.offsets.shape[0] - 1
    if rows != pattern.grid[0]:
        raise ValueError(
            f"pattern must have {pattern.grid[0]} tile rows for its shape {pattern.shape} and tile {pattern.tile}, got "
            f"offsets for {rows}"
        )

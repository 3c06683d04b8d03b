"""A module whose buffers are a pattern: which tiles of its weight are present, and the index of the transposed weight.

Structure only: a module that derives from this keeps the numbers. A new pattern is new contents of the same buffers.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from gossamer import ops
from gossamer.nn.snapshot import Snapshot
from gossamer.pattern import Pattern
from gossamer.pattern.build import index_dtype
from gossamer.planner import static_work


class Tiled(nn.Module):
    """A weight [out, in] whose present tiles are named by buffers.

    Args:
        pattern: the tiles, of the shape and tile that this module has for good.
        static: the pattern never changes, so that its work is partitioned once, where that gains.

    Attributes:
        shape: (out, in) of the weight.
        tile: (rows, columns) of a tile.
        offsets, indices: the pattern. `indices` holds the bytes of uint16 or int32 numbers, because process groups send
            bytes but not uint16.
        offsets_t, indices_t, order: the index of the transposed weight, derived from the pattern and not saved.
        work, work_t: work partitions, or None.

    `update_pattern` is the way to change a pattern, but what is derived follows whoever writes the buffers: it is made
    again before it is next read. Inside torch.compile it cannot be, and an assertion fails instead; on an accelerator
    see `gossamer.nn.snapshot.Snapshot`.
    """

    offsets: Tensor
    indices: Tensor
    offsets_t: Tensor
    indices_t: Tensor
    order: Tensor
    work: Tensor | None
    work_t: Tensor | None

    def __init__(self, pattern: Pattern, *, static: bool) -> None:
        super().__init__()
        self.shape, self.tile, self._static = (pattern.shape[0], pattern.shape[1]), pattern.tile, static
        self.register_buffer("offsets", pattern.row_offsets())
        self.register_buffer("indices", pattern.indices.reshape(-1).view(torch.uint8))
        for name in ("offsets_t", "indices_t", "order", "work", "work_t"):
            self.register_buffer(name, None, persistent=False)
        self._derived_from: Snapshot | None = None
        self._index_changed()

    @property
    def pattern(self) -> Pattern:
        """Which tiles are present, as views of this module's buffers: to be read."""
        return Pattern(self.offsets, self.indices.view(self._index_dtype(1)), self.shape, self.tile)

    @property
    def transposed(self) -> ops.Transposed:
        """The index of the transposed weight, which gradients of the input read."""
        self._follow()
        pattern = Pattern(self.offsets_t, self.indices_t.view(self._index_dtype(0)), self.shape[::-1], self.tile[::-1])
        return ops.Transposed(pattern, self.order, self.work_t)

    @property
    def density(self) -> float:
        """Share of the weight's elements that lie in a present tile. A device sync."""
        return self.pattern.density

    def _index_dtype(self, axis: int) -> torch.dtype:
        """Of the indices of tiles along an axis."""
        return index_dtype(-(-self.shape[axis] // self.tile[axis]))

    def _check_pattern(self, pattern: Pattern) -> None:
        """Refuse what is no pattern of this weight. What its tensors hold is read on the CPU only: elsewhere that is a
        sync, and left to GOSSAMER_CHECK=1."""
        check_fits(pattern, self.shape, self.tile)
        if pattern.device != self.offsets.device:
            raise ValueError(f"pattern must be on {self.offsets.device}, got {pattern.device}")
        if pattern.device.type == "cpu" or os.environ.get("GOSSAMER_CHECK") == "1":
            try:
                pattern.validate()
            except (TypeError, ValueError) as error:
                raise type(error)(f"pattern is broken: {error}") from None

    def _index_for(self, wants_gradient: bool) -> tuple[ops.Transposed | None, Tensor | None]:
        """The transposed index and the work partition of a product, as far as it will read them."""
        if not (wants_gradient or self._static) or self.offsets_t is None:  # none on the meta device
            return None, None
        return self.transposed, self.work

    def _set_index(self, pattern: Pattern) -> None:
        """Take over a pattern of this capacity, or of another one with new buffers."""
        indices = pattern.indices.reshape(-1).view(torch.uint8)
        if indices.shape == self.indices.shape:
            self.offsets.copy_(pattern.row_offsets())
            self.indices.copy_(indices)
        else:
            self.offsets, self.indices = pattern.row_offsets(), indices
        self._index_changed()

    def _follow(self) -> None:
        """Derive again if somebody wrote the pattern, or the work is for another number of threads."""
        rule = "offsets and indices must not be written but by update_pattern, where the layer is compiled"
        kept = self._derived_from is not None and self._derived_from.is_of(self.offsets, self.indices, rule=rule)
        if self._static and not torch.compiler.is_compiling():
            kept = kept and self._threads == torch.get_num_threads()
        if not kept:
            self._index_changed()

    @torch.inference_mode(False)  # what is made here serves training too
    def _index_changed(self) -> None:
        """Derive what is computed from the pattern."""
        if self.offsets.is_meta:
            return
        transposed = ops.transpose(self.pattern)
        fresh: dict[str, Tensor | None] = {
            "offsets_t": transposed.pattern.row_offsets(),
            "indices_t": transposed.pattern.indices.view(torch.uint8),
            "order": transposed.order,
        }
        if self._static:
            self._threads = torch.get_num_threads()
            fresh |= {"work": static_work(self.pattern), "work_t": static_work(transposed.pattern)}
        for name, tensor in fresh.items():
            held = getattr(self, name)
            if held is not None and tensor is not None and held.shape == tensor.shape and held.device == tensor.device:
                held.copy_(tensor)
            else:
                setattr(self, name, tensor)
        self._derived_from = Snapshot(self.offsets, self.indices)


def check_fits(pattern: Pattern, shape: tuple[int, int], tile: tuple[int, int]) -> None:
    """Refuse what is not a pattern of this shape and tile."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a gossamer.Pattern, got {type(pattern).__name__}")
    if tuple(pattern.shape) != shape or tuple(pattern.tile) != tile:
        raise ValueError(
            f"pattern must have shape {shape} and tile {tile}, got shape {tuple(pattern.shape)} and tile "
            f"{tuple(pattern.tile)}"
        )

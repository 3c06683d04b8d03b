"""Which tiles of a (rows, cols) matrix are present, grouped by tile row: the structure of a sparse thing.

    matrix 4 x 6, tile (2, 2)        tile rows      offsets = [0, 2, 3]
        a a . . b b                  0: {0, 2}      indices = [0, 2, 1]
        a a . . b b                  1: {1}
        . . c c . .
        . . c c . .                  values: a plain tensor [3, 2, 2] holding a, b, c in this order

A `Pattern` holds no values. It is data: kernels take its raw tensors, and a change of pattern is a change of the
contents of tensors whose shapes stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.pattern import algebra, build, convert
from gossamer.pattern.capacity import resized, take_over
from gossamer.pattern.check import Overflow, check_mask, check_matrix, check_pair, room_for
from gossamer.pattern.draw import draw
from gossamer.pattern.validate import validate

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pattern:
    """Which tiles of a matrix are present. Tile row `i` owns `indices[offsets[i]:offsets[i + 1]]`.

    Attributes:
        offsets: int64[tile_rows + 1], first 0, never falling, last = number of tiles present; or None when every
            tile row has the same number k (fan-in), and then `indices` is [tile_rows, k].
        indices: uint16 (at most 65536 tile columns) or int32, [capacity]: the tile column of each slot, in any order
            within a row, none twice. Entries past `offsets[-1]` are slack: ignored everywhere.
        shape: (rows, cols) of the matrix, in elements.
        tile: (bm, bn) of a tile, in elements. Tiles at the lower and right edge may be ragged.

    The constructor only stores; `validate()` checks. Builders return valid patterns. `==` is identity (so that a
    Pattern can be hashed and guarded cheaply); `equals` compares sets of tiles.

    >>> p = Pattern.from_mask(torch.tensor([[True, False, True], [False, False, False]]))
    >>> p.offsets, p.indices.tolist(), p.nnz
    (tensor([0, 2, 2]), [0, 2], 2)
    """

    offsets: Tensor | None
    indices: Tensor
    shape: tuple[int, int]
    tile: tuple[int, int]

    @classmethod
    def from_mask(
        cls, mask: Tensor, tile: tuple[int, int] = (1, 1), *, capacity: int | None = None, overflow: Overflow = "error"
    ) -> Pattern:
        """The tiles of bool[rows, cols] that hold at least one True.

        Args:
            capacity: number of index entries; None for exactly the tiles present (reads the count: one device sync).
            overflow: when more tiles than `capacity` are present: "error" raises RuntimeError (on an accelerator a
                device-side assertion, without a sync), "grow" enlarges the capacity, "dense" marks every tile
                present; the last two read the count on the host.

        >>> print(Pattern.from_mask(torch.eye(4).bool(), (2, 2)).to_tile_mask().int().tolist())
        [[1, 0], [0, 1]]
        """
        check_mask("mask", mask, "; use from_dense for numbers")
        tile, shape = check_pair("tile", tile, 1), (mask.shape[0], mask.shape[1])
        tiles = build.any_in_tile(mask, tile)
        return cls.from_tile_mask(tiles, tile, shape=shape, capacity=capacity, overflow=overflow)

    @classmethod
    def from_tile_mask(
        cls,
        tiles: Tensor,
        tile: tuple[int, int] = (1, 1),
        *,
        shape: tuple[int, int] | None = None,
        capacity: int | None = None,
        overflow: Overflow = "error",
    ) -> Pattern:
        """Exactly the tiles of bool[tile_rows, tile_cols]: what `to_tile_mask` gives back.

        Args:
            shape: of the matrix in elements; None for whole tiles, `tiles.shape * tile`.
            capacity, overflow: as in `from_mask`.

        >>> Pattern.from_tile_mask(torch.tensor([[False, True]]), (2, 2), shape=(2, 3)).to_mask().int().tolist()
        [[0, 0, 1], [0, 0, 1]]
        """
        check_mask("tiles", tiles)
        tile = check_pair("tile", tile, 1)
        shape = build.shape_of("tiles", tiles, tile, shape)
        offsets = build.count_rows(tiles)
        room, dense = room_for(offsets[-1], capacity, overflow, tiles.numel())
        if dense:
            return cls.full(shape, tile, device=tiles.device)
        return cls(offsets, build.columns_of(tiles, room), shape, tile)

    @classmethod
    def from_dense(
        cls, x: Tensor, tile: tuple[int, int] = (1, 1), *, capacity: int | None = None, overflow: Overflow = "error"
    ) -> Pattern:
        """The tiles of x[rows, cols] that hold a nonzero (NaN counts, -0.0 does not). `gossamer.detect` is faster.

        >>> Pattern.from_dense(torch.tensor([[0.0, -0.0, float("nan")]])).indices.tolist()
        [2]
        """
        check_matrix("x", x)
        return cls.from_mask(x != 0, tile, capacity=capacity, overflow=overflow)

    @classmethod
    def from_ids(cls, ids: Tensor, n: int) -> Pattern:
        """Routing: an (n, tokens) pattern whose row e lists, in token order, the tokens with id e.

        Args:
            ids: integers [tokens] or [tokens, k], the k destinations (experts, pages, clusters) of each token, each
                below n and no two equal; a negative id goes nowhere.
            n: number of destinations.

        Returns:
            Tile (1, 1) and capacity `ids.numel()`: no destination can overflow.

        >>> p = Pattern.from_ids(torch.tensor([1, 0, 1, -1]), 3)
        >>> p.offsets.tolist(), p.indices.tolist()
        ([0, 1, 3, 3], [1, 0, 2, 0])
        """
        build.check_ids(ids, n)
        offsets, indices = build.route(ids if ids.dim() == 2 else ids.unsqueeze(1), n)
        return cls(offsets, indices.to(build.index_dtype(ids.shape[0])), (n, ids.shape[0]), (1, 1))

    @classmethod
    def from_topk(
        cls, scores: Tensor, k: int, *, tile: tuple[int, int] = (1, 1), shape: tuple[int, int] | None = None
    ) -> Pattern:
        """Fan-in: the k tiles with the largest scores in every tile row, columns ascending, no offsets.

        Args:
            scores: [tile_rows, tile_cols]. Ties go to the lower column on every device; NaN counts as largest.
            shape: of the matrix in elements; None for whole tiles, `scores.shape * tile`.

        >>> Pattern.from_topk(torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2).indices.tolist()
        [[1, 2], [0, 1]]
        """
        check_matrix("scores", scores)
        tile = check_pair("tile", tile, 1)
        shape = build.shape_of("scores", scores, tile, shape)
        return cls(None, build.largest(scores, k), shape, tile)

    @classmethod
    def from_torch_bsr(cls, matrix: Tensor) -> tuple[Pattern, Tensor]:
        """A `torch.sparse_bsr` matrix as (pattern, values [nnz, bm, bn]); the values are not copied.

        >>> p, values = Pattern.from_torch_bsr(torch.eye(4).to_sparse_bsr((2, 2)))
        >>> p.tile, tuple(values.shape)
        ((2, 2), (2, 2, 2))
        """
        offsets, indices, values = convert.from_bsr(matrix)
        tile = (values.shape[1], values.shape[2])
        return cls(offsets, indices, (matrix.shape[0], matrix.shape[1]), tile), values

    @classmethod
    def full(
        cls, shape: tuple[int, int], tile: tuple[int, int] = (1, 1), *, device: torch.device | str | None = None
    ) -> Pattern:
        """Every tile present.

        >>> Pattern.full((4, 6), (2, 2)).indices.tolist()
        [0, 1, 2, 0, 1, 2]
        """
        shape, tile = check_pair("shape", shape, 0), check_pair("tile", tile, 1)
        return cls(*build.full(*build.grid_of(shape, tile), device), shape, tile)

    @property
    def grid(self) -> tuple[int, int]:
        """(tile_rows, tile_cols)."""
        return build.grid_of(self.shape, self.tile)

    @property
    def capacity(self) -> int:
        """Number of slots: entries of `indices`, leading size of a values tensor."""
        return self.indices.numel()

    @property
    def device(self) -> torch.device:
        return self.indices.device

    @property
    def nnz(self) -> int:
        """Number of tiles present. Reads it from the device (a sync) unless the pattern is fan-in."""
        return self.capacity if self.offsets is None else int(self.offsets[-1])

    @property
    def nnz_elements(self) -> int:
        """Number of matrix elements the present tiles cover, ragged edges clipped. A device sync."""
        return int(convert.tile_areas(self.keys(), self.shape, self.tile).sum())

    @property
    def density(self) -> float:
        """`nnz_elements / (rows * cols)`, between 0 and 1; 0 for an empty matrix. A device sync."""
        return self.nnz_elements / max(self.shape[0] * self.shape[1], 1)

    @property
    def is_uniform(self) -> bool:
        """Does every tile row hold the same number of tiles? A device sync unless the pattern is fan-in."""
        return self.offsets is None or self.offsets.diff().unique().numel() <= 1

    def row_offsets(self) -> Tensor:
        """`offsets`, or for fan-in the multiples of k they stand for: int64[tile_rows + 1]."""
        if self.offsets is not None:
            return self.offsets
        rows, k = self.indices.shape
        return torch.arange(rows + 1, device=self.device) * k

    def keys(self) -> Tensor:
        """int64[capacity]: each slot's tile number `row * tile_cols + col`; `tile_rows * tile_cols` in slack slots."""
        return algebra.keys_of(self.row_offsets(), self.indices, self.grid[1])

    def pack(self, dense: Tensor) -> Tensor:
        """values[capacity, bm, bn] of dense[rows, cols]; slack and the ragged edges' padding are zero. Differentiable.

        >>> Pattern.from_mask(torch.eye(2).bool()).pack(torch.tensor([[1, 2], [3, 4]])).flatten()
        tensor([1, 4])
        """
        check_matrix("dense", dense)
        if tuple(dense.shape) != tuple(self.shape):
            raise ValueError(f"dense must have the pattern's shape {self.shape}, got {tuple(dense.shape)}")
        return convert.pack(dense, self.keys(), self.grid, self.tile)

    def unpack(self, values: Tensor) -> Tensor:
        """dense[rows, cols] from values[capacity, bm, bn]; absent tiles are zero. Differentiable.

        >>> Pattern.from_mask(torch.eye(2).bool()).unpack(torch.tensor([[[1]], [[4]]]))
        tensor([[1, 0],
                [0, 4]])
        """
        expected = (self.capacity, *self.tile)
        if tuple(values.shape) != expected:
            raise ValueError(f"values must have shape [capacity, bm, bn] = {expected}, got {tuple(values.shape)}")
        return convert.unpack(values, self.keys(), self.grid, self.shape)

    def to_torch_bsr(self, values: Tensor) -> Tensor:
        """A `torch.sparse_bsr` matrix of values[capacity, bm, bn]. Needs whole tiles; a device sync.

        >>> p = Pattern.from_mask(torch.eye(4).bool(), (2, 2))
        >>> torch.equal(p.to_torch_bsr(p.pack(torch.eye(4))).to_dense(), torch.eye(4))
        True
        """
        return convert.to_bsr(values, self.keys(), self.grid, self.shape, self.tile)

    def value_mask(self) -> Tensor:
        """bool[capacity, bm, bn]: which numbers of a values tensor are elements of the matrix, not slack or padding.

        >>> Pattern.full((1, 3), (1, 2)).value_mask().flatten().tolist()
        [True, True, True, False]
        """
        return convert.value_mask(self.keys(), self.grid, self.shape, self.tile)

    def to_tile_mask(self) -> Tensor:
        """bool[tile_rows, tile_cols]: which tiles are present."""
        rows, cols = self.grid
        mask = torch.zeros(rows * cols + 1, dtype=torch.bool, device=self.device)
        return mask.scatter_(0, self.keys(), True)[:-1].view(rows, cols)

    def to_mask(self) -> Tensor:
        """bool[rows, cols]: which elements lie in a present tile.

        >>> Pattern.full((1, 3), (2, 2)).to_mask()
        tensor([[True, True, True]])
        """
        return convert.widened(self.to_tile_mask(), self.shape, self.tile)

    def to_block_mask(self, mask_mod: Callable[..., Tensor] | None = None) -> BlockMask:
        """A FlexAttention `BlockMask` (batch 1, head 1, broadcast) with rows as queries and columns as keys.

        `mask_mod(b, h, q, kv)` is applied inside the present tiles; without one they are attended in full.

        >>> Pattern.from_mask(torch.eye(4).bool(), (2, 2)).to_block_mask().to_dense().squeeze().tolist()
        [[1, 0], [0, 1]]
        """
        return convert.to_block_mask(self.to_tile_mask(), self.shape, self.tile, mask_mod)

    def transpose(self) -> Pattern:
        """The pattern of the transposed matrix, rows sorted; `transpose_with_permutation` also moves values."""
        return self.transpose_with_permutation()[0]

    def transpose_with_permutation(self) -> tuple[Pattern, Tensor]:
        """The transposed pattern and int64[capacity] `order`: its values are `values[order].transpose(1, 2)`.

        >>> p = Pattern.from_mask(torch.tensor([[False, True], [True, True]]))
        >>> t, order = p.transpose_with_permutation()
        >>> t.indices.tolist(), order.tolist()
        ([1, 0, 1], [1, 0, 2])
        """
        rows, cols = self.grid
        keys, order = algebra.transposed(self.keys(), rows, cols)
        offsets, indices = build.from_keys(keys, cols, rows)
        return Pattern(offsets, indices, (self.shape[1], self.shape[0]), (self.tile[1], self.tile[0])), order

    def union(self, other: Pattern) -> Pattern:
        """Tiles in either pattern; capacity is the sum, at most every tile."""
        return self._combine(algebra.union, other)

    def intersection(self, other: Pattern) -> Pattern:
        """Tiles in both patterns; capacity is the smaller one."""
        return self._combine(algebra.intersection, other)

    def difference(self, other: Pattern) -> Pattern:
        """Tiles in this pattern and not in `other`; capacity is this one's.

        >>> a, b = Pattern.full((1, 3)), Pattern.from_mask(torch.tensor([[False, True, False]]))
        >>> a.difference(b).to_mask().int().tolist(), a.union(b).nnz, a.intersection(b).nnz
        ([[1, 0, 1]], 3, 1)
        """
        return self._combine(algebra.difference, other)

    def equals(self, other: Pattern) -> bool:
        """Same shape, same tile, same set of tiles? Order within a row, slack and form do not matter. A device sync."""
        if self.shape != other.shape or self.tile != other.tile or self.device != other.device:
            return False
        mine, theirs, nnz = self.keys().sort().values, other.keys().sort().values, self.nnz
        return nnz == other.nnz and torch.equal(mine[:nnz], theirs[:nnz])

    def _combine(self, operation: Callable[[Tensor, Tensor, int], Tensor], other: Pattern) -> Pattern:
        self._check_grid(other)
        every_tile = self.grid[0] * self.grid[1]
        keys = operation(self.keys(), other.keys(), every_tile)[:every_tile]
        return Pattern(*build.from_keys(keys, *self.grid), self.shape, self.tile)

    def _check_grid(self, other: Pattern) -> None:
        if self.shape != other.shape or self.tile != other.tile:
            raise ValueError(
                f"other must have shape {self.shape} and tile {self.tile}, got shape {other.shape}, tile {other.tile}"
            )

    def with_capacity(self, capacity: int, *, overflow: Overflow = "error") -> Pattern:
        """The same tiles in `capacity` slots (new tensors); see `from_mask` for `overflow`.

        >>> Pattern.full((1, 2)).with_capacity(4).indices.tolist()
        [0, 1, 0, 0]
        """
        index = resized(self.row_offsets(), self.indices, capacity, overflow, self.grid[0] * self.grid[1])
        if index is None:
            return Pattern.full(self.shape, self.tile, device=self.device)
        return Pattern(*index, self.shape, self.tile)

    def copy_(self, other: Pattern) -> Pattern:
        """Take over the tiles of `other` in place: same buffers, same capacity, so no recompilation. Returns self.

        Raises:
            ValueError: another shape, tile or form. RuntimeError: more tiles than this capacity (nothing is changed).

        >>> p = Pattern.full((1, 2)).with_capacity(2)
        >>> p.copy_(Pattern.from_mask(torch.tensor([[False, True]]))).to_mask()
        tensor([[False,  True]])
        """
        self._check_grid(other)
        if self.offsets is None and (other.offsets is not None or other.indices.shape != self.indices.shape):
            raise ValueError(f"other must be fan-in with indices {tuple(self.indices.shape)}, got {other!r}")
        take_over(self.offsets, self.indices, other.row_offsets(), other.indices)
        return self

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Pattern:
        """The pattern on another device (itself if already there)."""
        moved = self.indices.to(device, non_blocking=non_blocking)
        if moved is self.indices:
            return self
        offsets = None if self.offsets is None else self.offsets.to(device, non_blocking=non_blocking)
        return Pattern(offsets, moved, self.shape, self.tile)

    def validate(self) -> Pattern:
        """Check everything the class promises and return self. A device sync.

        Raises:
            TypeError, ValueError: naming the field, its value and what was expected.
        """
        validate(self.offsets, self.indices, self.shape, self.tile)
        return self

    def __repr__(self) -> str:
        form = "" if self.offsets is not None else f", fan-in {self.indices.shape[-1]}"
        dtype = str(self.indices.dtype).removeprefix("torch.")
        where = f"capacity {self.capacity}{form}, {dtype}, {self.device}"
        return f"Pattern({self.shape[0]} x {self.shape[1]}, tile {self.tile[0]} x {self.tile[1]}, {where})"

    def __str__(self) -> str:
        """A header and a drawing of at most 32 lines of 64 characters. A device sync."""
        count = f"{self.nnz} of {self.grid[0] * self.grid[1]} tiles, density {self.density:.2%}"
        return f"{self!r}\n{count}\n{draw(self.keys(), self.grid)}"

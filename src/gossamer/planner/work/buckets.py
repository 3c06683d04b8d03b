"""Dynamic partition: buckets of a fixed capacity, whatever pattern arrives.

Everything that has a size is fixed ahead from the largest number of tiles alone. A tile row has a *home* bucket that
depends on its number only, not on the pattern. Rows that find their home full are moved, biggest first, to the nearest
bucket with room, whole if possible and cut up if not; what fits nowhere follows the declared policy.

    4 workers, at most 12 tiles, oversize 0.3: capacity 4 each       tiles per row 0..7:   3 3 1 0 0 1 2 2
    home (two rows each)       {0: 6 tiles, 1: 1, 2: 1, 3: 4}        row 1 finds bucket 0 full
    after balancing            {0: 3, 1: 1 + 3, 2: 1, 3: 4}          row 1 moved by one: steps 2, spilled 3

PopSparse's dynamic mode (arXiv 2303.16999), whose buckets travel from worker to worker: `steps` counts the rounds that
would take. Ours share memory, so a spilled tile costs nothing but the distance to the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.planner.work.partition import check_count, check_pattern, on_host

Policy = Literal["error", "dense", "grow", "drop"]
_POLICIES = ("error", "dense", "grow", "drop")


@dataclass(frozen=True)
class Encoded:
    """One pattern in buckets.

    Attributes:
        work: int64[workers, segments, 3] of (tile_row, first_slot, end_slot), unused entries (-1, 0, 0); of the same
            shape for every pattern. None when policy "dense" took over: the caller runs the dense product (a sparse
            one without `work` is exact as well).
        loads: tiles of each bucket.
        spilled: tiles that are not in the home bucket of their row.
        steps: 1 + the largest distance on the ring of buckets that a tile was moved.
        dropped: tiles left out; 0 unless the policy is "drop".
        kept: bool[capacity], which slots `work` names; None where it names all of them. See `keep`.
        grown: whether policy "grow" enlarged the buckets, and with them the shape of `work`.
    """

    work: Tensor | None
    loads: tuple[int, ...]
    spilled: int
    steps: int
    dropped: int
    grown: bool
    kept: Tensor | None = None

    def keep(self, values: Tensor) -> Tensor:
        """values[capacity, ...] with zeros for the dropped tiles; values themselves when nothing was dropped.

        `work` divides a product and does not define it: gradients, and products on other devices, go over the whole
        pattern. `dsd(encoded.keep(values), pattern, b, work=encoded.work)` defines it: what was dropped adds nothing to
        the result nor to the gradient of b, and has gradient zero. On a CPU it is refused to drop what is not zero.
        """
        if self.kept is None:
            return values
        if not isinstance(values, Tensor) or values.shape[:1] != self.kept.shape:
            raise ValueError(
                f"values must be a tensor with {len(self.kept)} slots, got "
                f"{list(values.shape) if isinstance(values, Tensor) else type(values).__name__}"
            )
        return values.masked_fill(~self.kept.view(-1, *[1] * (values.dim() - 1)), 0)


class Buckets:
    """Encoder of patterns with at most `max_nnz` tiles for a fixed number of workers.

    Args:
        tile_rows: rows of the grid of tiles.
        max_nnz: the most tiles that a pattern may hold. Any pattern within it fits, however skewed.
        workers: threads or thread blocks, one bucket each.
        oversize: room beyond an even share, as a fraction (PopSparse's default is 0.3). More means fewer spills.
        grain: a bucket's capacity is rounded up to a multiple of this.
        policy: when a pattern holds more than all buckets together: "error" raises RuntimeError, "dense" gives it to
            the dense product, "grow" enlarges the buckets for good, "drop" leaves tiles out and counts them: they are
            not multiplied, and have no gradient (`Encoded.keep`).
        force_spill: treat every home as full, so that each row that can is moved: a hook for tests.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> pattern = Pattern.from_mask(torch.ones(1, 6).bool())
    >>> encoded = Buckets(tile_rows=4, max_nnz=6, workers=2).encode(pattern)
    Traceback (most recent call last):
        ...
    ValueError: pattern must have 4 tile rows, got 1
    >>> encoded = Buckets(tile_rows=1, max_nnz=6, workers=2, oversize=0.0).encode(pattern)
    >>> encoded.work.tolist(), encoded.spilled, encoded.steps
    ([[[0, 0, 3]], [[0, 3, 6]]], 3, 2)
    """

    def __init__(
        self,
        tile_rows: int,
        max_nnz: int,
        workers: int,
        *,
        oversize: float = 0.3,
        grain: int = 1,
        policy: Policy = "error",
        force_spill: bool = False,
    ) -> None:
        if isinstance(tile_rows, bool) or not isinstance(tile_rows, int) or tile_rows < 0:
            raise ValueError(f"tile_rows must be an int of at least 0, got {tile_rows!r}")
        if isinstance(max_nnz, bool) or not isinstance(max_nnz, int) or max_nnz < 0:
            raise ValueError(f"max_nnz must be an int of at least 0, got {max_nnz!r}")
        check_count("workers", workers)
        check_count("grain", grain)
        if not 0.0 <= oversize < float("inf"):
            raise ValueError(f"oversize must be a fraction of at least 0, got {oversize}")
        if policy not in _POLICIES:
            raise ValueError(f"policy must be one of {', '.join(map(repr, _POLICIES))}, got {policy!r}")
        self.tile_rows, self.workers, self.oversize, self.grain = tile_rows, workers, oversize, grain
        self.policy, self.force_spill = policy, force_spill
        self.capacity = self._capacity_for(max_nnz)

    @property
    def home(self) -> np.ndarray:
        """The bucket of each tile row. Rows, not tiles, are dealt evenly: it must not depend on the pattern."""
        return np.arange(self.tile_rows) * self.workers // max(self.tile_rows, 1)

    def _capacity_for(self, max_nnz: int) -> int:
        share = -(-max_nnz // self.workers)
        return -(-round(share * (1.0 + self.oversize)) // self.grain) * self.grain

    @property
    def segments(self) -> int:
        """Entries of `work` for each worker: a bucket holds at most one piece of each row, and a tile at least."""
        return max(min(self.capacity, self.tile_rows), 1)

    def encode(self, pattern: Pattern) -> Encoded:
        """Deal the tiles of a pattern to the buckets. Reads its offsets on the host (one device sync).

        Raises:
            RuntimeError: more tiles than the buckets hold and policy "error"; nothing has changed then.
            TypeError, ValueError: no pattern, another number of tile rows, or one that overflowed its own capacity.
        """
        check_pattern(pattern)
        offsets = on_host(pattern)
        if len(offsets) - 1 != self.tile_rows:
            raise ValueError(f"pattern must have {self.tile_rows} tile rows, got {len(offsets) - 1}")
        nnz, room = int(offsets[-1]), self.capacity * self.workers
        grown = False
        if nnz > room:
            if self.policy == "error":
                raise RuntimeError(
                    f"pattern holds {nnz} tiles, {self.workers} buckets of {self.capacity} hold {room} "
                    "(policy='error'; raise max_nnz or oversize)"
                )
            if self.policy == "dense":
                return Encoded(None, (0,) * self.workers, 0, 1, 0, False)
            if self.policy == "grow":
                # At least double, so that a count creeping upwards grows a logarithmic number of times.
                self.capacity = max(self._capacity_for(nnz), 2 * self.capacity)
                grown = True
        pieces = self._deal(offsets)
        work = np.zeros((self.workers, self.segments, 3), dtype=np.int64)
        work[..., 0] = -1
        bucket, row, first, end = pieces
        order = np.lexsort((row, bucket))
        bucket, row, first, end = bucket[order], row[order], first[order], end[order]
        count = np.bincount(bucket, minlength=self.workers)
        work[bucket, np.arange(len(bucket)) - (np.cumsum(count) - count)[bucket]] = np.stack([row, first, end], axis=1)
        dropped, kept = nnz - int((end - first).sum()), None
        if dropped:
            steps = np.zeros(pattern.capacity + 1, dtype=np.int64)
            np.add.at(steps, first, 1)
            np.add.at(steps, end, -1)
            kept = torch.from_numpy(steps[:-1].cumsum() > 0).to(pattern.device)
        length, moved = end - first, self._distance(bucket, self.home[row])
        loads = np.bincount(bucket, weights=length, minlength=self.workers).astype(np.int64)
        return Encoded(
            torch.from_numpy(work).to(pattern.device),
            tuple(loads.tolist()),
            spilled=int(length[moved > 0].sum()),
            steps=1 + int(moved.max(initial=0)),
            dropped=dropped,
            grown=grown,
            kept=kept,
        )

    def _distance(self, bucket: np.ndarray, home: np.ndarray) -> np.ndarray:
        apart = np.abs(bucket - home)
        return np.minimum(apart, self.workers - apart)

    def _deal(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(bucket, row, first slot, end slot) of every piece."""
        counts = np.diff(offsets)
        rows = np.flatnonzero(counts)
        sizes, home = counts[rows], self.home[rows]
        # Rows stay at home in their order while they fit; a bucket's rows are neighbours, so sums start over with it.
        total = np.cumsum(sizes)
        before_home = (total - sizes)[np.searchsorted(home, home)]
        stays = (total - before_home <= self.capacity) & (not self.force_spill)
        kept = rows[stays]
        room = self.capacity - np.bincount(home[stays], weights=sizes[stays], minlength=self.workers).astype(np.int64)
        moved = self._rehome(rows[~stays], sizes[~stays], offsets, room)
        bucket, row, first, end = (np.array(column, dtype=np.int64) for column in moved)
        return (
            np.concatenate([self.home[kept], bucket]),
            np.concatenate([kept, row]),
            np.concatenate([offsets[kept], first]),
            np.concatenate([offsets[kept + 1], end]),
        )

    def _rehome(
        self, rows: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, room_left: np.ndarray
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Find places for the rows that did not fit: whole, then in pieces, biggest first, nearest bucket first."""
        room = room_left.tolist()
        out: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        nearest = [self._by_distance(home) for home in range(self.workers)]

        def put(bucket: int, row: int, first: int, end: int) -> None:
            room[bucket] -= end - first
            for column, value in zip(out, (bucket, row, first, end), strict=True):
                column.append(value)

        order = np.argsort(-sizes, kind="stable")
        cut: list[int] = []
        for row, size in zip(rows[order].tolist(), sizes[order].tolist(), strict=True):
            first = int(offsets[row])
            for bucket in nearest[self.home[row]]:
                if room[bucket] >= size:
                    put(bucket, row, first, first + size)
                    break
            else:
                cut.append(row)
        for row in cut:
            first, end = int(offsets[row]), int(offsets[row + 1])
            for bucket in nearest[self.home[row]]:
                if room[bucket] and first < end:
                    some = min(room[bucket], end - first)
                    put(bucket, row, first, first + some)
                    first += some
        return out

    def _by_distance(self, home: int) -> list[int]:
        """Buckets from the nearest to the farthest; under `force_spill` home itself comes last."""
        everyone = np.arange(self.workers)
        apart = self._distance(everyone, np.full(self.workers, home))
        order = everyone[np.argsort(apart, kind="stable")].tolist()
        return order[1:] + order[:1] if self.force_spill else order

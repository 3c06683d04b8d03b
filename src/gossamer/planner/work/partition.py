"""Static partition: cut a frozen pattern into parts of equal work, once, for all later products.

    tile rows      0: a b c d e     2 parts of 4 tiles     part 0: (row 0, slots 0:4)
                   1: f                                    part 1: (row 0, slots 4:5), (row 1, 5:6), (row 3, 6:8)
                   2: -
                   3: g h                                  row 0 straddles; its two partial sums are added in order

PopSparse's static mode (arXiv 2303.16999): bands of columns of equal numbers of tiles, each with workers in
proportion, and inside a band the tiles cut evenly in row order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossamer.pattern import Pattern


@dataclass(frozen=True)
class Partition:
    """A pattern's slots dealt to `parts` workers.

    Attributes:
        work: int64[parts, segments, 3], entries (tile_row, first_slot, end_slot); unused ones (-1, 0, 0) come last.
            Every slot of the pattern is in exactly one segment. On the pattern's device.
        loads: tiles of each part.
        straddling: tile rows that belong to more than one segment, and whose partial sums must therefore be added.
    """

    work: Tensor
    loads: tuple[int, ...]
    straddling: int

    @property
    def imbalance(self) -> float:
        """Tiles of the fullest part over the mean; 1 is even, and 1 for an empty pattern."""
        total = sum(self.loads)
        return max(self.loads) * len(self.loads) / total if total else 1.0


def partition(pattern: Pattern, parts: int, *, bands: int = 1, tolerance: float = 0.02) -> Partition:
    """Cut the tiles of a pattern into parts of nearly equal numbers, rows kept whole where that costs little.

    Args:
        pattern: read on the host (one device sync), so plan once per pattern.
        parts: workers: threads or thread blocks.
        bands: column bands, each of about the same number of tiles and so of uneven width. More than one makes a part
            touch fewer rows of the dense operand, and costs one partial sum per row and band.
        tolerance: a cut moves to the end of a row if that changes the load of a part by at most this fraction.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> pattern = Pattern.from_mask(torch.arange(5) < torch.tensor([[5], [1], [0], [2]]))
    >>> plan = partition(pattern, 2)
    >>> plan.work[0, 0].tolist(), plan.loads, plan.straddling
    ([0, 0, 4], (4, 4), 1)
    """
    check_pattern(pattern)
    check_count("parts", parts)
    check_count("bands", bands)
    if bands > parts:
        raise ValueError(f"bands must be at most parts={parts}, got {bands}: a worker serves one band")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
    offsets = on_host(pattern)
    columns = pattern.indices.reshape(-1)[: int(offsets[-1])].cpu().to(torch.int64).numpy()
    rows, starts, ends, band = _runs(offsets, columns, _bands(columns, bands, pattern.grid[1]))
    order = np.lexsort((rows, band))
    rows, starts, ends, band = rows[order], starts[order], ends[order], band[order]
    if bool(((rows[1:] == rows[:-1]) & (band[1:] == band[:-1])).any()):
        raise ValueError("pattern must have its columns in ascending order in every row when bands > 1")
    cuts = _cuts(ends - starts, band, parts, tolerance)
    work, loads = deal(rows, starts, ends, cuts, parts)
    used = work[..., 0][work[..., 0] >= 0]
    straddling = int((np.unique(used, return_counts=True)[1] > 1).sum())
    return Partition(torch.from_numpy(work).to(pattern.device), tuple(loads.tolist()), straddling)


def static_work(pattern: Pattern) -> Tensor | None:
    """The `work` to give products with a pattern that stays: a partition, or None where it would gain nothing.

    On a CPU the kernel cuts panels of columns and whole tile rows into even shares itself, in microseconds, so only a
    row with more tiles than a thread's share needs a partition. On a GPU a thread block takes a tile row unless told
    otherwise, so there every pattern gets one, with a part for each multiprocessor. Reads the pattern on the host.

    >>> static_work(Pattern.full((64, 64), (16, 16))) is None
    True
    """
    if pattern.device.type == "cuda":
        return partition(pattern, torch.cuda.get_device_properties(pattern.device).multi_processor_count).work
    parts = torch.get_num_threads()
    longest = int(pattern.row_offsets().diff().max()) if pattern.grid[0] else 0
    return partition(pattern, parts).work if longest * parts > pattern.nnz else None


def check_pattern(pattern: Pattern) -> None:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a gossamer.Pattern, got {type(pattern).__name__}")


def check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def on_host(pattern: Pattern) -> np.ndarray:
    """int64[tile_rows + 1], after checking that they are offsets and the pattern has room for what it says it holds."""
    offsets = pattern.row_offsets().cpu().numpy()
    if offsets[0] != 0 or bool((np.diff(offsets) < 0).any()):
        raise ValueError(f"pattern must have offsets that start at 0 and never fall, got {offsets[:16].tolist()}")
    if offsets[-1] > pattern.capacity:
        raise ValueError(f"pattern holds {offsets[-1]} tiles but has a capacity of {pattern.capacity}: it overflowed")
    return offsets


def _bands(columns: np.ndarray, bands: int, tile_cols: int) -> np.ndarray:
    """The band of each slot: a band closes when it holds its share of the tiles, counted column by column."""
    if bands == 1:
        return np.zeros(len(columns), dtype=np.int64)
    counts = np.bincount(columns, minlength=tile_cols)
    before = np.cumsum(counts) - counts
    return (before * bands // max(len(columns), 1))[columns]


def _runs(
    offsets: np.ndarray, columns: np.ndarray, band: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Longest stretches of slots of one row and one band: (row, first slot, end slot, band) of each."""
    slots = len(columns)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    new = np.ones(slots, dtype=bool)
    new[1:] = (row[1:] != row[:-1]) | (band[1:] != band[:-1])
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], slots) if slots else starts
    return row[starts], starts, ends, band[starts]


def _cuts(lengths: np.ndarray, band: np.ndarray, parts: int, tolerance: float) -> np.ndarray:
    """Where parts 1, 2, ... begin, as positions in the runs laid end to end; each band gets whole parts."""
    used = np.unique(band)
    if len(used) == 0:
        return np.zeros(parts - 1, dtype=np.int64)
    sizes = np.array([lengths[band == b].sum() for b in used])
    share = _shares(sizes, parts)
    cuts: list[np.ndarray] = []
    begin = 0
    for b, size, workers in zip(used, sizes, share, strict=True):
        inside = begin + np.arange(1, workers) * size / workers
        cuts += [_to_ends(inside, begin + np.cumsum(lengths[band == b]), tolerance * size / workers)]
        begin += int(size)
        cuts += [np.array([begin])]
    return np.concatenate(cuts)[: parts - 1]


def _shares(sizes: np.ndarray, parts: int) -> np.ndarray:
    """Parts for each band: one at least, the rest one by one to the band whose parts are the fullest."""
    share = np.ones(len(sizes), dtype=np.int64)
    for _ in range(parts - len(sizes)):
        share[np.argmax(sizes / share)] += 1
    return share


def _to_ends(ideal: np.ndarray, ends: np.ndarray, reach: float) -> np.ndarray:
    """Round each cut, and move it to the nearest end of a run within reach."""
    after = np.searchsorted(ends, ideal).clip(max=len(ends) - 1)
    either = np.stack([ends[after], ends[(after - 1).clip(min=0)]])
    nearest = either[np.abs(either - ideal).argmin(0), np.arange(len(ideal))]
    moved = np.where(np.abs(nearest - ideal) <= reach, nearest, np.rint(ideal)).astype(np.int64)
    return np.maximum.accumulate(moved)


def deal(
    rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, cuts: np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs laid end to end and cut at `cuts` -> (work int64[parts, segments, 3], tiles of each part)."""
    place = np.cumsum(ends - starts) - (ends - starts)
    total = int((ends - starts).sum())
    pieces = np.unique(np.concatenate([place, cuts[(cuts > 0) & (cuts < total)]]))
    pieces = pieces[pieces < total]
    run = np.searchsorted(place, pieces, side="right") - 1
    length = np.diff(np.append(pieces, total))
    first = starts[run] + pieces - place[run] if total else pieces
    part = np.searchsorted(cuts, pieces, side="right")
    count = np.bincount(part, minlength=parts)
    work = np.zeros((parts, max(int(count.max()), 1), 3), dtype=np.int64)
    work[..., 0] = -1
    within = np.arange(len(pieces)) - (np.cumsum(count) - count)[part]
    work[part, within] = np.stack([rows[run], first, first + length], axis=1)
    return work, np.bincount(part, weights=length, minlength=parts).astype(np.int64)

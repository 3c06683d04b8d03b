"""Static and dynamic partitions: every slot exactly once, whatever the pattern; over-capacity as declared."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.pattern import Pattern
from gossamer.planner.work.buckets import Buckets
from gossamer.planner.work.partition import partition
from gossamer.testing import strategies


def _slots(work: torch.Tensor, pattern: Pattern) -> list[int]:
    """Every slot named by work, after checking that each entry is well formed and no part names a row twice."""
    offsets, slots = pattern.row_offsets().tolist(), []
    for part in work.tolist():
        used = [entry for entry in part if entry[0] >= 0]
        assert part[: len(used)] == used, "unused entries come last"
        assert all(entry == [-1, 0, 0] for entry in part[len(used) :])
        assert len({row for row, _, _ in used}) == len(used)
        for row, first, end in used:
            assert offsets[row] <= first < end <= offsets[row + 1]
            slots += range(first, end)
    return slots


def _product(work: torch.Tensor, pattern: Pattern, values: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """S @ b by following work, part by part."""
    (rows, _), (bm, bk) = pattern.shape, pattern.tile
    out = torch.zeros(pattern.grid[0] * bm, b.shape[1], dtype=b.dtype)
    wide = torch.zeros(pattern.grid[1] * bk, b.shape[1], dtype=b.dtype)
    wide[: b.shape[0]] = b
    for part in work.tolist():
        for row, first, end in part:
            for slot in range(first, end):
                column = int(pattern.indices[slot])
                out[row * bm : (row + 1) * bm] += values[slot] @ wide[column * bk : (column + 1) * bk]
    return out[:rows]


@given(strategies.patterns(), st.integers(1, 7), st.sampled_from((0.0, 0.02, 0.5)))
def test_static_parts_are_the_pattern_exactly_once(pattern, parts, tolerance):
    plan = partition(pattern, parts, tolerance=tolerance)
    assert plan.work.shape[0] == parts and plan.work.dtype == torch.int64
    assert sorted(_slots(plan.work, pattern)) == list(range(pattern.nnz))
    share = pattern.nnz / parts
    assert all(abs(load - share) <= 1 + 2 * tolerance * share for load in plan.loads)
    rows = plan.work[..., 0][plan.work[..., 0] >= 0]
    assert plan.straddling == sum(int((rows == row).sum()) > 1 for row in rows.unique())
    assert plan.straddling <= parts - 1


@given(strategies.cases(), st.integers(0, 99), st.integers(1, 4), st.integers(1, 7))
def test_bands_are_the_pattern_exactly_once(case, seed, bands, parts):
    pattern = Pattern.from_mask(case.dense(seed=seed) != 0, case.tile)
    if bands > parts:
        with pytest.raises(ValueError, match=f"bands must be at most parts={parts}, got {bands}"):
            partition(pattern, parts, bands=bands)
        return
    plan = partition(pattern, parts, bands=bands)
    assert sorted(_slots(plan.work, pattern)) == list(range(pattern.nnz))


def test_each_part_serves_one_band_of_equal_weight():
    torch.manual_seed(1)
    mask = torch.rand(64, 96) < torch.linspace(0.9, 0.02, 96)  # most tiles in the first columns
    pattern = Pattern.from_mask(mask)
    plan = partition(pattern, 4, bands=4, tolerance=0.0)
    spans = []
    for part in plan.work.tolist():
        columns = [int(pattern.indices[s]) for row, first, end in part if row >= 0 for s in range(first, end)]
        spans.append((min(columns), max(columns)))
    assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))
    assert spans[0][1] - spans[0][0] < 0.4 * (spans[3][1] - spans[3][0]), "bands are uneven in width"
    assert plan.imbalance < 1.1
    with pytest.raises(ValueError, match="ascending order"):
        partition(Pattern(torch.tensor([0, 3]), torch.tensor([0, 3, 1]).to(torch.uint16), (1, 4), (1, 1)), 2, bands=2)


def test_static_beats_equal_rows_on_a_skewed_pattern():
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[0] = True
    mask[1:, 0] = True
    plan = partition(Pattern.from_mask(mask), 2)
    assert plan.imbalance <= 1.05 and plan.straddling == 1
    assert Buckets(8, 71, 2).encode(Pattern.from_mask(mask)).loads != plan.loads


ADVERSARIAL = {
    "one row": lambda m: m[3].fill_(True),
    "one column": lambda m: m[:, 5].fill_(True),
    "one corner": lambda m: m[-6:, -6:].fill_(True),
    "first row and column": lambda m: (m[0].fill_(True), m[:, 0].fill_(True)),
    "everything": lambda m: m.fill_(True),
    "nothing": lambda m: m,
    "rows of rising length": lambda m: m.copy_(torch.ones_like(m).tril()),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_any_pattern_within_capacity_loses_nothing(name, workers, force):
    mask = torch.zeros(16, 16, dtype=torch.bool)
    ADVERSARIAL[name](mask)
    pattern = Pattern.from_mask(mask)
    # No room to spare: every bucket must be filled to the last slot.
    buckets = Buckets(16, pattern.nnz, workers, oversize=0.0, force_spill=force)
    encoded = buckets.encode(pattern)
    assert sorted(_slots(encoded.work, pattern)) == list(range(pattern.nnz))
    assert max(encoded.loads, default=0) <= buckets.capacity
    assert encoded.dropped == 0 and not encoded.grown
    if name == "one row" and workers > 1:
        assert encoded.spilled >= 16 - buckets.capacity and encoded.steps >= 2


@settings(max_examples=150)
@given(strategies.patterns(), st.integers(1, 7), st.integers(0, 9), st.sampled_from((0.0, 0.3)), st.booleans(),
       st.integers(1, 4))  # fmt: skip
def test_buckets_are_the_pattern_exactly_once(pattern, workers, spare, oversize, force, grain):
    rows = pattern.grid[0]
    buckets = Buckets(rows, pattern.nnz + spare, workers, oversize=oversize, grain=grain, force_spill=force)
    encoded = buckets.encode(pattern)
    slots = _slots(encoded.work, pattern)
    assert sorted(slots) == list(range(pattern.nnz))
    assert encoded.work.shape == (workers, buckets.segments, 3)
    assert buckets.capacity % grain == 0 and max(encoded.loads) <= buckets.capacity
    moved, far = 0, 0
    for part, entries in enumerate(encoded.work.tolist()):
        for row, first, end in entries:
            apart = abs(part - row * workers // rows) if row >= 0 else 0
            apart = min(apart, workers - apart)
            moved, far = moved + (end - first) * (apart > 0), max(far, apart)
    assert (encoded.spilled, encoded.steps) == (moved, far + 1)


def test_force_spill_moves_every_row_that_can_move():
    pattern = Pattern.from_mask(torch.ones(8, 2).bool())
    calm = Buckets(8, 16, 4, oversize=1.0).encode(pattern)
    forced = Buckets(8, 16, 4, oversize=1.0, force_spill=True).encode(pattern)
    assert (calm.spilled, calm.steps) == (0, 1)
    assert forced.spilled == 16 and forced.steps >= 2


def test_work_of_another_pattern_has_the_same_shape():
    buckets, shapes = Buckets(16, 128, 3), set()
    for seed in range(20):
        mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)) < seed / 40
        shapes.add(tuple(buckets.encode(Pattern.from_mask(mask)).work.shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("plan", [
    lambda p: partition(p, 3).work, lambda p: partition(p, 3, bands=2).work,
    lambda p: Buckets(p.grid[0], p.nnz, 3, oversize=0.0).encode(p).work,
    lambda p: Buckets(p.grid[0], p.nnz, 3, force_spill=True).encode(p).work,
])  # fmt: skip
def test_following_work_gives_the_product(plan):
    torch.manual_seed(2)
    pattern = Pattern.from_mask(torch.rand(13, 22) < 0.3, (3, 4))
    values = torch.randint(-4, 5, (pattern.capacity, 3, 4)).double()
    b = torch.randint(-4, 5, (22, 5)).double()
    dense = pattern.unpack(pattern.pack(pattern.unpack(values)))
    assert torch.equal(_product(plan(pattern), pattern, pattern.pack(dense), b), dense @ b)


class TestOverCapacity:
    pattern = Pattern.from_mask(torch.ones(4, 10).bool())

    def test_error(self):
        with pytest.raises(RuntimeError, match=re.escape("pattern holds 40 tiles, 2 buckets of 13 hold 26")):
            Buckets(4, 20, 2).encode(self.pattern)

    def test_dense(self):
        encoded = Buckets(4, 20, 2, policy="dense").encode(self.pattern)
        assert encoded.work is None and encoded.dropped == 0

    def test_grow(self):
        buckets = Buckets(4, 20, 2, policy="grow")
        encoded = buckets.encode(self.pattern)
        assert encoded.grown and encoded.dropped == 0
        assert sorted(_slots(encoded.work, self.pattern)) == list(range(40))
        again = buckets.encode(self.pattern)
        assert not again.grown and again.work.shape == encoded.work.shape

    def test_drop_counts(self):
        encoded = Buckets(4, 20, 2, policy="drop").encode(self.pattern)
        kept = _slots(encoded.work, self.pattern)
        assert len(set(kept)) == len(kept) == 26 and encoded.dropped == 14


def test_five_thousand_tokens_on_one_expert():
    """SparTA's index held 4096 tokens an expert and overran silently; every row here may hold them all."""
    pattern = Pattern.from_ids(torch.full((5000,), 3), 64)
    encoded = Buckets(64, 5000, 8).encode(pattern)
    assert sorted(_slots(encoded.work, pattern)) == list(range(5000))
    assert sorted(_slots(partition(pattern, 8).work, pattern)) == list(range(5000))


BAD = [
    (lambda p: partition(torch.ones(2, 2), 2), TypeError, "pattern must be a gossamer.Pattern, got Tensor"),
    (lambda p: partition(p, 0), ValueError, "parts must be at least 1, got 0"),
    (lambda p: partition(p, 2.0), TypeError, "parts must be an int, got 2.0"),
    (lambda p: partition(p, 2, tolerance=1.0), ValueError, "tolerance must be at least 0 and below 1"),
    (lambda p: Buckets(2, -1, 2), ValueError, "max_nnz must be an int of at least 0, got -1"),
    (lambda p: Buckets(-2, 1, 2), ValueError, "tile_rows must be an int of at least 0, got -2"),
    (lambda p: Buckets(2, 1, 0), ValueError, "workers must be at least 1, got 0"),
    (lambda p: Buckets(2, 1, 1, oversize=-0.1), ValueError, "oversize must be a fraction of at least 0"),
    (lambda p: Buckets(2, 1, 1, policy="spill"), ValueError, "policy must be one of 'error', 'dense'"),
    (lambda p: Buckets(3, 1, 1).encode(p), ValueError, "pattern must have 3 tile rows, got 2"),
    (lambda p: partition(Pattern(torch.tensor([0, 1, 9]), p.indices, (2, 2), (1, 1)), 2), ValueError, "it overflowed"),
]


@pytest.mark.parametrize("call, error, said", BAD, ids=[row[2] for row in BAD])
def test_bad_input(call, error, said):
    with pytest.raises(error, match=re.escape(said)):
        call(Pattern.full((2, 2)))

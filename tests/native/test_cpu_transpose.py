"""Law: the transposed index names the same tiles by column, rows ascending, on every instruction set and team."""

import pytest
import torch

from gossamer.kernels import cpu
from gossamer.testing import assert_same_bits

GRIDS = [(1, 1), (5, 3), (3, 5), (1, 300), (300, 1), (70, 65), (400, 600)]


def pattern(mask, slack=0):
    """Offsets and indices of a grid of tiles, the slots of a row in random order, slack that holds nonsense."""
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    columns = []
    for row in mask:
        mine = row.nonzero().flatten()
        columns.append(mine[torch.randperm(len(mine))])
    used = torch.cat([*columns, torch.full((slack,), 60000)])
    return offsets, used.to(torch.uint16 if mask.shape[1] <= 65536 else torch.int32)


def agree(mask, offsets, indices):
    rows, cols = mask.shape
    used, capacity = int(offsets[-1]), indices.numel()
    offsets_t, indices_t, order = cpu.transpose(offsets, indices, cols)
    assert offsets_t.dtype == torch.int64 and order.dtype == torch.int32
    assert indices_t.dtype == (torch.uint16 if rows <= 65536 else torch.int32)
    column, row = mask.t().nonzero(as_tuple=True)  # ascending by column, then by row
    assert torch.equal(offsets_t, torch.nn.functional.pad(mask.sum(0).cumsum(0), (1, 0)))
    assert torch.equal(indices_t[:used].long(), row) and not indices_t[used:].long().any()
    owner = torch.repeat_interleave(torch.arange(rows), offsets.diff())
    assert torch.equal(owner[order[:used].long()], row)
    assert torch.equal(indices[order[:used].long()].long(), column)
    assert torch.equal(order[used:].long(), torch.arange(used, capacity))
    return offsets_t, indices_t, order


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid(isa, grid, density):
    mask = torch.rand(grid) < density
    for slack in (0, 7):
        agree(mask, *pattern(mask, slack))


@pytest.mark.parametrize("grid", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_no_tiles(isa, grid):
    for slack in (0, 3):
        agree(torch.zeros(grid, dtype=torch.bool), *pattern(torch.zeros(grid, dtype=torch.bool), slack))


def test_crowded_rows(isa):
    """All tiles in one row, so that a share begins and ends inside it; and empty rows around it."""
    mask = torch.zeros(9, 40_000, dtype=torch.bool)
    mask[4] = True
    agree(mask, *pattern(mask))
    agree(mask.t(), *pattern(mask.t()))


@pytest.mark.parametrize("grid", [(2, 65_600), (65_600, 2), (65_536, 2), (2, 65_536)], ids=str)
def test_wide_indices(isa, grid):
    mask = torch.rand(grid) < 0.3
    mask[-1, -1] = True
    agree(mask, *pattern(mask))


@pytest.mark.parametrize("grid", [(700, 90), (90, 700), (1, 20_000)], ids=str)
def test_threads(isa, grid):
    mask = torch.rand(grid) < 0.6
    slots = pattern(mask, 5)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(agree(mask, *slots))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_same_bits(one, two)


def test_twice_is_the_pattern(isa):
    mask = torch.rand(60, 130) < 0.2
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    indices = mask.nonzero()[:, 1].to(torch.uint16)  # ascending
    offsets_t, indices_t, order = cpu.transpose(offsets, indices, 130)
    again, indices_again, order_again = cpu.transpose(offsets_t, indices_t, 60)
    assert_same_bits(again, offsets)
    assert_same_bits(indices_again, indices)
    assert torch.equal(order[order_again.long()], torch.arange(len(indices)).int())


def test_overflow_keeps_the_tiles_there_is_room_for(isa):
    """offsets may count more tiles than capacity; the index is then of those that are stored."""
    mask = torch.rand(20, 30) < 0.5
    offsets, indices = pattern(mask)
    room = int(offsets[11]) + 1
    kept = torch.zeros_like(mask)
    owner = torch.repeat_interleave(torch.arange(20), offsets.diff())[:room]
    kept[owner, indices[:room].long()] = True
    offsets_t, indices_t, order = cpu.transpose(offsets, indices[:room].clone(), 30)
    assert torch.equal(offsets_t.diff(), kept.sum(0)) and torch.equal(indices_t.long(), kept.t().nonzero()[:, 1])
    assert torch.equal(order.sort().values, torch.arange(room).int())


def test_refused():
    offsets, indices = pattern(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="tile_cols must be at least 0, got -1"):
        cpu.transpose(offsets, indices, -1)
    with pytest.raises(ValueError, match=r"offsets must have one entry more.*got 0"):
        cpu.transpose(offsets[:0], indices, 2)
    with pytest.raises(TypeError, match=r"offsets .*int64.*int32"):
        cpu.transpose(offsets.int(), indices, 2)
    with pytest.raises(TypeError, match=r"indices .*uint16 or .*int32"):
        cpu.transpose(offsets, offsets, 2)


def test_checked_before_memory_is_touched(monkeypatch):
    monkeypatch.setenv("GOSSAMER_CHECK", "1")
    offsets, indices = pattern(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"indices\[\d\] is 2, expected 0 <= index < 2 tile columns"):
        cpu.transpose(offsets, indices, 2)

"""Law: the drawing shows where tiles are, fits 32 lines of 64 characters, and never hides a tile or a gap."""

import torch
from hypothesis import given

from gossamer.pattern import Pattern
from gossamer.testing import strategies


def test_a_small_pattern_is_drawn_tile_by_tile():
    p = Pattern.from_mask(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool(), (1, 2), capacity=5)
    assert str(p) == ("Pattern(3 x 4, tile 1 x 2, capacity 5, uint16, cpu)\n2 of 6 tiles, density 33.33%\n█·\n··\n·█")


def test_fan_in_says_so():
    assert repr(Pattern.from_topk(torch.eye(3), 2)) == ("Pattern(3 x 3, tile 1 x 1, capacity 6, fan-in 2, uint16, cpu)")


def test_shades_of_a_large_pattern():
    mask = torch.zeros(64, 128, dtype=torch.bool)  # 2 x 2 tiles a character
    mask[0, 0] = True  # 1 of 4
    mask[0, 2:4] = True  # 2 of 4
    mask[0:2, 4:6] = True
    mask[1, 5] = False  # 3 of 4
    mask[0:2, 6:8] = True  # 4 of 4
    lines = str(Pattern.from_mask(mask)).splitlines()[2:]
    assert lines[0] == "░▒▓█" + "·" * 60 and lines[1:] == ["·" * 64] * 31


def test_almost_all_and_almost_none_are_told_from_all_and_none():
    mask = torch.zeros(320, 640, dtype=torch.bool)  # 10 x 10 tiles a character
    mask[3, 4] = True
    mask[0:10, 10:20] = True
    mask[9, 19] = False
    assert str(Pattern.from_mask(mask)).splitlines()[2] == "░▓" + "·" * 62


@given(strategies.patterns(max_rows=90, max_cols=150))
def test_every_tile_and_every_gap_leaves_a_mark(p):
    header, count, *lines = str(p).splitlines()
    assert header == repr(p) and count.startswith(f"{p.nnz} of {p.grid[0] * p.grid[1]} tiles")
    if 0 in p.grid:
        assert lines == ["(no tiles)"]
        return
    height, width = min(p.grid[0], 32), min(p.grid[1], 64)
    assert [len(line) for line in lines] == [width] * height
    row = torch.arange(p.grid[0]) * height // p.grid[0]
    column = torch.arange(p.grid[1]) * width // p.grid[1]
    tiles = p.to_tile_mask()
    for i, line in enumerate(lines):
        for j, character in enumerate(line):
            share = tiles[row == i][:, column == j]
            assert (character == "·") == (not share.any()) and (character == "█") == bool(share.all())

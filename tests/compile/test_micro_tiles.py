"""Micro-tiles: the dense tile with one axis set to one."""

import pytest

from gossamer.compile.expressions.micro_tiles import CACHE_LINE, SECTOR, micro_tiles


def test_micro_tiles_are_the_dense_tile_with_one_axis_set_to_one():
    m, k = micro_tiles(32, 64, 16)
    assert (m.axis, m.tile, m.order) == ("m", (1, 64), "row")
    assert (k.axis, k.tile, k.order) == ("k", (32, 1), "column")
    k, n = micro_tiles(32, 64, 16, sparse="B")
    assert (k.tile, k.order, n.tile, n.order) == ((1, 16), "row", (64, 1), "column")
    assert [u.order for u in micro_tiles(1, 8, 1)] == ["row", None]


def test_a_micro_tile_fills_a_transaction_or_says_that_it_does_not():
    eight = micro_tiles(8, 8, 8)[0]
    assert eight.fills(4, SECTOR) and not eight.fills(2, SECTOR) and not eight.fills(4, CACHE_LINE)
    assert micro_tiles(8, 16, 8)[0].fills(4, CACHE_LINE)


def test_an_extent_below_one_is_named():
    with pytest.raises(ValueError, match="bm must be at least 1, got 0"):
        micro_tiles(0, 8, 8)

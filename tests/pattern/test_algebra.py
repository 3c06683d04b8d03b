"""Law: patterns on one grid are sets of tiles; transposing twice is nothing; values follow their tiles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.pattern import Pattern
from gossamer.testing import CASES, assert_same_bits, assert_same_tiles, case, ids, strategies

every_case = pytest.mark.parametrize("c", CASES, ids=ids())
OPERATIONS = {
    "union": lambda a, b: a | b,
    "intersection": lambda a, b: a & b,
    "difference": lambda a, b: a & ~b,
}


@pytest.mark.parametrize("name", OPERATIONS)
@every_case
def test_set_operations(c, name):
    a, b = Pattern.from_mask(c.mask(0), c.tile), Pattern.from_mask(c.mask(1), c.tile)
    assert_same_tiles(getattr(a, name)(b), OPERATIONS[name](c.tiles(0), c.tiles(1)), ordered=True)


@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_set_operations_ignore_order_and_slack(name, data):
    a = data.draw(strategies.patterns())
    other = torch.rand(a.shape) < data.draw(st.sampled_from((0.0, 0.05, 0.5, 1.0)))
    b = Pattern.from_mask(other, a.tile)
    b = b.with_capacity(b.nnz + data.draw(st.integers(0, 3)))
    for first, second in ((a, b), (b, a)):
        expected = OPERATIONS[name](first.to_tile_mask(), second.to_tile_mask())
        assert_same_tiles(getattr(first, name)(second), expected, ordered=True)


@every_case
def test_transpose_is_the_pattern_of_the_transposed_matrix(c):
    p = Pattern.from_mask(c.mask(), c.tile)
    t = p.transpose()
    assert t.shape == (c.cols, c.rows) and t.tile == c.tile[::-1]
    assert_same_tiles(t, c.tiles().t(), ordered=True)


@given(strategies.patterns())
def test_transpose_is_an_involution_and_values_follow(p):
    x = torch.randn(p.shape)
    t, order = p.transpose_with_permutation()
    back, order_back = t.transpose_with_permutation()
    values = p.pack(x)
    values_t = values[order].transpose(1, 2)
    assert_same_bits(t.unpack(values_t), p.unpack(values).t().contiguous())
    assert back.equals(p) and back.capacity == p.capacity
    assert_same_bits(back.unpack(values_t[order_back].transpose(1, 2)), p.unpack(values))
    assert order.sort().values.tolist() == list(range(p.capacity))


def test_fan_in_takes_part_in_the_algebra():
    p = Pattern.from_topk(torch.rand(6, 9), 3)
    same = Pattern.from_mask(p.to_mask())
    assert p.equals(same) and same.equals(p)
    assert p.difference(same).nnz == 0 and p.union(same).equals(p) and p.intersection(same).equals(p)
    assert_same_tiles(p.transpose(), p.to_tile_mask().t(), ordered=True)


@given(strategies.patterns(), st.integers(0, 10**6))
def test_equals_looks_at_the_tiles_only(p, seed):
    plain = Pattern.from_mask(p.to_mask(), p.tile)
    assert p.equals(plain) and plain.equals(p)
    every = p.grid[0] * p.grid[1]
    if every:
        changed = p.to_tile_mask().flatten()
        changed[seed % every] ^= True
        tiles = Pattern.from_mask(changed.view(p.grid))
        one_off = Pattern(tiles.offsets, tiles.indices, p.shape, p.tile)
        assert not p.equals(one_off) and not one_off.equals(p)


def test_equals_tells_shapes_tiles_and_moved_tiles_apart():
    p = Pattern.from_mask(torch.tensor([[True, False], [False, True]]))
    moved = Pattern.from_mask(torch.tensor([[False, True], [True, False]]))
    assert not p.equals(moved)
    assert not p.equals(Pattern(p.offsets, p.indices, (2, 3), p.tile))
    assert not p.equals(Pattern(p.offsets, p.indices, (2, 2), (1, 2)))
    assert p != Pattern(p.offsets, p.indices, p.shape, p.tile), "== is identity"


@pytest.mark.parametrize("name", ["empty rows", "every tile", "no tiles", "blocks"])
def test_is_uniform(name):
    c = case(name)
    counts = c.tiles().sum(1)
    assert Pattern.from_mask(c.mask(), c.tile).is_uniform == bool((counts == counts[0]).all())


def test_nothing_of_the_size_of_the_grid_is_built():
    """10^12 tiles: any mask of the grid would not fit, a sort of the index does."""
    side = 10**6
    a = Pattern(torch.arange(side + 1), torch.arange(side, dtype=torch.int32), (side, side), (1, 1))
    b = Pattern(torch.arange(side + 1), torch.arange(side, dtype=torch.int32).flip(0), (side, side), (1, 1))
    assert a.transpose().equals(a) and b.transpose().equals(b)
    assert a.union(b).nnz == 2 * side and a.intersection(b).nnz == 0 and a.difference(b).nnz == side
    assert a.union(a).nnz == side and a.density == 1e-6
    assert str(a).splitlines()[2:] == ["·" * (2 * i) + "░░" + "·" * (62 - 2 * i) for i in range(32)]

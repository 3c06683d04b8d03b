"""Law: capacity is fixed ahead, slack is never looked at, and more tiles than capacity are never silent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.pattern import Pattern
from gossamer.testing import assert_same_bits, assert_same_tiles, case, strategies

C = case("ragged")
TILES = int(C.tiles().sum())
EVERY = C.grid[0] * C.grid[1]


def make(builder, **kwargs):
    if builder == "with_capacity":
        return Pattern.from_mask(C.mask(), C.tile).with_capacity(kwargs["capacity"], overflow=kwargs["overflow"])
    return getattr(Pattern, builder)(C.mask() if builder == "from_mask" else C.dense(), C.tile, **kwargs)


builders = pytest.mark.parametrize("builder", ["from_mask", "from_dense", "with_capacity"])


@builders
@pytest.mark.parametrize("overflow", ["error", "dense", "grow"])
@pytest.mark.parametrize("capacity", [TILES, TILES + 1, EVERY, EVERY + 7])
def test_enough_room_is_kept_as_given(builder, overflow, capacity):
    p = make(builder, capacity=capacity, overflow=overflow)
    assert p.capacity == capacity and (p.indices[TILES:] == 0).all()
    assert_same_tiles(p, C.tiles(), ordered=True)


@builders
@pytest.mark.parametrize("capacity", [0, 1, TILES - 1])
def test_overflow_error(builder, capacity):
    with pytest.raises(RuntimeError, match=rf"capacity={capacity} is too small: {TILES} tiles are present"):
        make(builder, capacity=capacity, overflow="error")


@builders
def test_overflow_grow(builder):
    p = make(builder, capacity=TILES - 1, overflow="grow")
    assert p.capacity == min(EVERY, 2 * (TILES - 1)) >= TILES
    assert_same_tiles(p, C.tiles(), ordered=True)
    assert make(builder, capacity=1, overflow="grow").capacity == TILES


@builders
def test_overflow_dense(builder):
    p = make(builder, capacity=TILES - 1, overflow="dense")
    assert p.capacity == EVERY
    assert_same_tiles(p, torch.ones_like(C.tiles()), ordered=True)


@given(strategies.patterns(max_slack=9), st.integers(0, 2**16))
def test_slack_changes_nothing(p, seed):
    """Every result is the same whatever the slack holds, an index out of range included."""
    generator = torch.Generator().manual_seed(seed)
    poisoned = p.indices.clone()
    poisoned[p.nnz :] = torch.randint(0, 65536, (p.capacity - p.nnz,), generator=generator).to(torch.uint16)
    q = Pattern(p.offsets, poisoned, p.shape, p.tile).validate()
    x = torch.randn(p.shape)
    assert q.equals(p) and (q.nnz, q.nnz_elements) == (p.nnz, p.nnz_elements) and str(q) == str(p)
    assert torch.equal(q.to_mask(), p.to_mask())
    assert_same_bits(q.pack(x), p.pack(x))
    assert_same_bits(q.unpack(q.pack(x)), p.unpack(p.pack(x)))
    assert q.transpose().equals(p.transpose()) and q.union(p).equals(p) and q.difference(p).nnz == 0
    assert q.with_capacity(p.nnz).equals(p)


def test_copy_keeps_the_buffers():
    a, b = case("ragged").mask(0), case("ragged").mask(1)
    p = Pattern.from_mask(a, C.tile, capacity=EVERY)
    where = p.offsets.data_ptr(), p.indices.data_ptr()
    for capacity in (None, EVERY, EVERY + 3):  # from less, the same and more room
        assert p.copy_(Pattern.from_mask(b, C.tile, capacity=capacity)) is p
        assert_same_tiles(p, C.tiles(1), ordered=True)
        p.copy_(Pattern.from_mask(a, C.tile))
        assert_same_tiles(p, C.tiles(0), ordered=True)
    assert where == (p.offsets.data_ptr(), p.indices.data_ptr()) and p.capacity == EVERY


def test_a_pattern_with_other_capacity_shares_nothing():
    for p in (Pattern.from_mask(C.mask(), C.tile), Pattern.from_mask(C.mask(), C.tile, capacity=EVERY)):
        q = p.with_capacity(p.capacity)
        q.copy_(Pattern.from_mask(torch.zeros_like(C.mask()), C.tile))
        assert_same_tiles(p, C.tiles(), ordered=True)
        q.copy_(p).indices.zero_()
        assert_same_tiles(p, C.tiles(), ordered=True)


def test_copy_refuses_more_tiles_than_fit_and_changes_nothing():
    p = Pattern.from_mask(C.mask(), C.tile)
    offsets, indices = p.offsets.clone(), p.indices.clone()
    with pytest.raises(RuntimeError, match=rf"{EVERY} tiles.*capacity of {TILES}"):
        p.copy_(Pattern.full(C.shape, C.tile))
    assert torch.equal(p.offsets, offsets) and torch.equal(p.indices, indices)


def test_copy_between_forms():
    fan_in = Pattern.from_topk(torch.rand(5, 8), 2)
    other = Pattern.from_topk(torch.rand(5, 8), 2)
    plain = Pattern.from_mask(torch.rand(5, 8) < 0.2, capacity=40)
    where = fan_in.indices.data_ptr()
    assert fan_in.copy_(other).equals(other) and fan_in.indices.data_ptr() == where
    assert plain.copy_(fan_in).equals(fan_in)
    with pytest.raises(ValueError, match="fan-in"):
        fan_in.copy_(plain)
    with pytest.raises(ValueError, match="fan-in"):
        fan_in.copy_(Pattern.from_topk(torch.rand(5, 8), 3))


def test_to_the_same_device_is_the_same_pattern():
    p = Pattern.from_topk(torch.rand(3, 4), 2)
    assert p.to("cpu") is p
    meta = p.to("meta")
    assert meta.device.type == "meta" and meta.shape == p.shape and meta.offsets is None
    assert "meta" in repr(meta)

"""Law: pack and unpack move every element of a present tile to its slot and back, and nothing else."""

import pytest
import torch
from hypothesis import given

from gossamer.pattern import Pattern
from gossamer.testing import CASES, assert_same_bits, case, ids, strategies

every_case = pytest.mark.parametrize("c", CASES, ids=ids())


def slots(p):
    """(slot, tile row, tile column) of every present tile, read off the index by plain Python."""
    offsets, indices = p.row_offsets().tolist(), p.indices.flatten().tolist()
    return [(s, row, indices[s]) for row in range(p.grid[0]) for s in range(offsets[row], offsets[row + 1])]


@every_case
def test_unpack_undoes_pack(c):
    x = c.dense(torch.float64)
    p = Pattern.from_dense(x, c.tile)
    assert_same_bits(p.unpack(p.pack(x)), x)


@pytest.mark.parametrize("name", ["ragged", "ragged, odd tile", "tile larger than the matrix", "empty rows"])
def test_pack_puts_each_tile_in_its_slot_with_zero_padding(name):
    c = case(name)
    x = torch.randn(c.shape)
    p = Pattern.from_mask(c.mask(), c.tile).with_capacity(c.grid[0] * c.grid[1] + 3)
    expected = torch.zeros(p.capacity, *c.tile)
    for slot, row, column in slots(p):
        piece = x[row * c.tile[0] : (row + 1) * c.tile[0], column * c.tile[1] : (column + 1) * c.tile[1]]
        expected[slot, : piece.shape[0], : piece.shape[1]] = piece
    assert_same_bits(p.pack(x), expected)


@given(strategies.patterns())
def test_slack_and_padding_never_reach_the_matrix(p):
    x = torch.ones(p.shape)
    values = p.pack(x)
    values[values == 0] = float("nan")  # slack slots and the padding of ragged tiles
    assert_same_bits(p.unpack(values), p.to_mask().float())


@given(strategies.patterns())
def test_masks_and_sizes_agree_with_the_index(p):
    tiles = torch.zeros(p.grid, dtype=torch.bool)
    elements = torch.zeros(p.shape, dtype=torch.bool)
    for _, row, column in slots(p):
        tiles[row, column] = True
        elements[row * p.tile[0] : (row + 1) * p.tile[0], column * p.tile[1] : (column + 1) * p.tile[1]] = True
    assert torch.equal(p.to_tile_mask(), tiles) and torch.equal(p.to_mask(), elements)
    assert p.nnz == tiles.sum() and p.nnz_elements == elements.sum()
    assert p.density == int(elements.sum()) / max(elements.numel(), 1)


@pytest.mark.parametrize("name", ["ragged", "blocks"])
def test_pack_and_unpack_are_adjoint_and_differentiable(name):
    c = case(name)
    p = Pattern.from_mask(c.mask(), c.tile).with_capacity(c.grid[0] * c.grid[1])
    x = torch.randint(-4, 5, c.shape).double().requires_grad_()
    v = torch.randint(-4, 5, (p.capacity, *c.tile)).double().requires_grad_()
    (gx,) = torch.autograd.grad(p.pack(x), x, v)
    (gv,) = torch.autograd.grad(p.unpack(v), v, x)
    assert torch.equal(gx, p.unpack(v)) and torch.equal(gv, p.pack(x))


@pytest.mark.parametrize("name", ["blocks", "every tile", "no tiles"])
@pytest.mark.parametrize("slack", [0, 4])
def test_torch_bsr_round_trip(name, slack):
    c = case(name)
    x = c.dense(torch.float64)
    p = Pattern.from_dense(x, c.tile)
    p = p.with_capacity(p.nnz + slack)
    matrix = p.to_torch_bsr(p.pack(x))
    assert_same_bits(matrix.to_dense(), x)
    q, values = Pattern.from_torch_bsr(matrix)
    assert q.equals(p)
    assert_same_bits(q.unpack(values), x)


@given(strategies.patterns(whole=True))
def test_to_torch_bsr_sorts_shuffled_rows(p):
    x = torch.randn(p.shape)
    assert_same_bits(p.to_torch_bsr(p.pack(x)).to_dense(), x.where(p.to_mask(), 0))


def test_fan_in_has_offsets_for_those_who_need_them():
    p = Pattern.from_topk(torch.rand(5, 9), 3)
    x = torch.randn(5, 9)
    assert p.row_offsets().tolist() == [0, 3, 6, 9, 12, 15]
    assert_same_bits(p.unpack(p.pack(x)), x.where(p.to_mask(), 0))


@pytest.mark.parametrize("name", ["ragged", "blocks", "no tiles"])
def test_block_mask_covers_the_same_tiles(name):
    c = case(name)
    p = Pattern.from_mask(c.mask(), c.tile)
    block_mask = p.to_block_mask()
    assert torch.equal(block_mask.to_dense()[0, 0].bool(), c.tiles())
    assert torch.equal(p.to_block_mask(lambda b, h, q, kv: q >= kv).to_dense()[0, 0].bool(), c.tiles())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_block_mask_attends_where_the_mask_is(causal, compiled):
    from torch.nn.attention.flex_attention import flex_attention

    tiles = torch.rand(4, 4) < 0.5
    tiles |= torch.eye(4).bool()  # every query sees itself: a row without keys is undefined in SDPA
    p = Pattern.from_mask(tiles.repeat_interleave(32, 0).repeat_interleave(32, 1), (32, 32))
    q, k, v = torch.randn(3, 1, 2, 128, 16)
    mask = p.to_mask() & (torch.ones(128, 128).tril().bool() if causal else True)
    block_mask = p.to_block_mask((lambda b, h, i, j: i >= j) if causal else None)
    attend = torch.compile(flex_attention, fullgraph=True) if compiled else flex_attention
    out = attend(q, k, v, block_mask=block_mask)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    # Softmax weights sum to 1, so an entry is an average of v: relative error grows with the 128 keys and 16 products.
    bound = 8 * (128 + 16) * torch.finfo(torch.float32).eps * v.abs().max()
    assert (out.double() - exact).abs().max() <= bound

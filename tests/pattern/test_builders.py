"""Law: the tiles a builder finds are the nonzero entries, each once; the index is as narrow as the width allows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.pattern import Pattern, block_diagonal
from gossamer.testing import CASES, assert_same_tiles, case, ids, strategies

every_case = pytest.mark.parametrize("c", CASES, ids=ids())


@every_case
def test_from_mask_finds_the_tiles(c):
    assert_same_tiles(Pattern.from_mask(c.mask(), c.tile), c.tiles(), ordered=True)


@every_case
def test_from_tile_mask_is_the_way_back_from_to_tile_mask(c):
    p = Pattern.from_tile_mask(c.tiles(), c.tile, shape=c.shape)
    assert_same_tiles(p, c.tiles(), ordered=True)
    assert torch.equal(p.to_tile_mask(), c.tiles()) and p.shape == c.shape


@every_case
def test_value_mask_says_which_values_are_elements(c):
    p = Pattern.from_mask(c.mask(), c.tile)
    p = p.with_capacity(p.capacity + 2)
    expected = p.pack(torch.ones(c.shape)) != 0
    assert torch.equal(p.value_mask(), expected)


@every_case
def test_block_diagonal_is_the_block_diagonal_matrix(c):
    masks = [c.tiles(0), c.tiles(1), torch.zeros(c.grid, dtype=torch.bool)]
    heads = [Pattern.from_tile_mask(mask, c.tile, shape=c.shape) for mask in masks]
    heads[0] = heads[0].with_capacity(heads[0].capacity + 3)  # slack between two heads has to go
    found = block_diagonal(heads, copies=2)
    expected = torch.block_diag(*[mask.int() for mask in masks * 2]).bool()
    assert found.capacity == found.nnz and found.grid == expected.shape
    assert_same_tiles(found, expected, ordered=True)
    assert_same_tiles(block_diagonal(heads, copies=2, capacity=found.nnz + 5), expected, ordered=True)


def test_block_diagonal_takes_fan_in_and_no_copies_and_refuses_what_does_not_fit():
    one = Pattern.from_topk(torch.rand(3, 4), 2)
    assert torch.equal(block_diagonal([one]).to_mask(), one.to_mask())
    assert block_diagonal([one], copies=0).shape == (0, 0)
    with pytest.raises(ValueError, match="agree in shape, tile and device"):
        block_diagonal([one, Pattern.full((3, 5))])
    with pytest.raises(ValueError, match="one or more"):
        block_diagonal([])
    with pytest.raises(RuntimeError, match="capacity=3 is too small: 6 tiles"):
        block_diagonal([one], capacity=3)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool], ids=str)
def test_from_dense_finds_the_tiles(c, dtype):
    assert_same_tiles(Pattern.from_dense(c.dense(dtype), c.tile), c.tiles(), ordered=True)


@every_case
def test_capacity_is_exact_by_default_and_indices_are_narrow(c):
    p = Pattern.from_mask(c.mask(), c.tile)
    assert p.capacity == p.nnz == int(c.tiles().sum())
    assert p.offsets.dtype == torch.int64
    assert p.indices.dtype == (torch.uint16 if c.grid[1] <= 65536 else torch.int32)


@every_case
def test_full_has_every_tile(c):
    assert_same_tiles(Pattern.full(c.shape, c.tile), torch.ones(c.grid, dtype=torch.bool), ordered=True)


@given(strategies.cases(), st.integers(0, 100))
def test_from_mask_finds_the_tiles_of_any_matrix(c, seed):
    assert_same_tiles(Pattern.from_mask(c.mask(seed), c.tile), c.tiles(seed), ordered=True)


def test_minus_zero_is_absent_and_nan_and_subnormals_are_present():
    x = torch.tensor([[0.0, -0.0, float("nan"), 5e-324, float("inf")]], dtype=torch.float64)
    assert Pattern.from_dense(x).indices.tolist() == [2, 3, 4]


@pytest.mark.parametrize("k", [None, 1, 3])
def test_from_ids_lists_each_destination_s_tokens_in_order(k):
    tokens, n = 50, 7
    order = torch.rand(tokens, n).argsort(dim=1)
    ids_ = order[:, 0] if k is None else order[:, :k]
    ids_ = torch.where(torch.rand(ids_.shape) < 0.2, -1, ids_)
    p = Pattern.from_ids(ids_, n)
    expected = torch.stack([(ids_.reshape(tokens, -1) == e).any(dim=1) for e in range(n)])
    assert p.shape == (n, tokens) and p.tile == (1, 1) and p.capacity == ids_.numel()
    assert_same_tiles(p, expected, ordered=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_from_ids_takes_any_integer_type(dtype):
    p = Pattern.from_ids(torch.tensor([100, 3, 100], dtype=dtype), 101)
    assert p.indices.tolist() == [1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_from_ids_more_destinations_than_the_dtype_can_count(dtype):
    ids_ = torch.tensor([100, 3, 100], dtype=dtype)
    p = Pattern.from_ids(ids_, 300)
    assert p.indices.tolist() == [1, 0, 2] and p.offsets[100:102].tolist() == [1, 3]


def test_from_ids_without_tokens_or_with_every_token_dropped():
    assert Pattern.from_ids(torch.empty(0, dtype=torch.int64), 3).offsets.tolist() == [0, 0, 0, 0]
    assert Pattern.from_ids(torch.full((4, 2), -1), 3).nnz == 0


@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_from_topk_keeps_the_largest(k):
    scores = torch.randperm(12 * 20).view(12, 20).float()
    p = Pattern.from_topk(scores, k)
    expected = torch.zeros(12, 20, dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True)
    assert p.offsets is None and p.indices.shape == (12, k) and p.is_uniform
    assert_same_tiles(p, expected, ordered=True)


def test_from_topk_breaks_ties_by_the_lower_index():
    scores = torch.randint(0, 3, (200, 70))
    p = Pattern.from_topk(scores, 31)
    for row, kept in zip(scores.tolist(), p.indices.tolist(), strict=True):
        assert kept == sorted(sorted(range(70), key=lambda c: (-row[c], c))[:31])


def test_from_topk_counts_nan_as_largest():
    assert Pattern.from_topk(torch.tensor([[3.0, float("nan"), float("inf")]]), 1).indices.tolist() == [[1]]


def test_from_topk_of_tiles_of_a_ragged_matrix():
    p = Pattern.from_topk(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 1, tile=(4, 8), shape=(5, 9))
    assert p.shape == (5, 9) and p.to_mask().sum() == 4 * 1 + 1 * 8


@pytest.mark.parametrize("name", ["blocks", "every tile", "no tiles"])
def test_from_torch_bsr_shares_the_values(name):
    c = case(name)
    matrix = c.dense().to_sparse_bsr(c.tile)
    p, values = Pattern.from_torch_bsr(matrix)
    assert_same_tiles(p, c.tiles(), ordered=True)
    assert p.shape == c.shape and values.data_ptr() == matrix.values().data_ptr()


def test_builders_of_a_permuted_or_strided_matrix_see_its_elements():
    x = case("ragged").dense()
    tiles = case("ragged").tiles()
    assert_same_tiles(Pattern.from_dense(x.t(), (16, 8)), tiles.t(), ordered=True)
    wide = torch.stack([x, torch.ones_like(x)], dim=-1)
    assert_same_tiles(Pattern.from_dense(wide[..., 0], (8, 16)), tiles, ordered=True)


def test_builders_leave_their_input_alone():
    mask = case("ragged").mask()
    before = mask.clone()
    Pattern.from_mask(mask, (8, 16))
    Pattern.from_mask(mask, (1, 1))
    assert torch.equal(mask, before)

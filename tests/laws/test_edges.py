"""Laws at the edges: nothing to do, fewer slots than tiles, more columns than 16 bits count, all in one place."""

import itertools

import pytest
import torch
from backends import CPU, EVERY, REFERENCE, on
from oracles import assert_same_numbers, covered, gathered, index_of, numbers, shuffled, spoilt

from gossamer.testing import assert_same_bits


@on(EVERY, "shape", [(0, 5, 4), (5, 0, 4), (5, 4, 0), (0, 0, 0), (5, 5, 3)])
def test_products_of_nothing(backend, shape):
    """No rows, no columns, no tiles; an empty sum is zero."""
    rows, k, n = shape
    for tile, density in itertools.product(((1, 1), (2, 3)), (0.0, 1.0)):
        tiles = torch.full((-(-rows // tile[0]), -(-k // tile[1])), density > 0)
        of, b = shuffled(tiles), torch.ones(k, n)
        values = spoilt(torch.ones(len(of[1]), *tile), *of, (rows, k))
        exact = covered(tiles, (rows, k), tile).double() @ b.double()
        for column_major in (False, True):
            for work in (None, torch.full((2, 1, 3), -1)) if density == 0 else (None,):
                c = backend("dsd", values, *of, None, None, b, rows, False, column_major, work)
                assert_same_numbers(c, exact)
            c = backend("gather_mm", torch.ones(rows, k), *of, *tile, b[None], column_major)
            assert_same_numbers(c, exact)
        sampled = backend("sdd", torch.ones(rows, n), torch.ones(n, k), *of, *tile)
        assert_same_numbers(sampled, gathered(torch.full((rows, k), float(n)), *of, tile))


@on(EVERY, "shape", [(0, 5, 4), (5, 0, 4), (5, 4, 0)])
def test_groups_of_nothing(backend, shape):
    tokens, k, n = shape
    for groups in (0, 2):
        offsets = torch.zeros(groups + 1, dtype=torch.int64)
        offsets[1:] = tokens
        y = backend("grouped_mm", torch.ones(tokens, k), None, None, offsets, torch.ones(groups, k, n), False, 7)
        assert y.shape == (7, n) and int(y.sum()) == (tokens * k * n if groups else 0)
        dw = backend("grouped_outer", torch.ones(tokens, k), torch.ones(tokens, n), None, None, offsets)
        assert dw.shape == (groups, k, n) and int(dw.sum()) == (tokens * k * n if groups else 0)


@on(EVERY)
def test_places_before_the_first_group_belong_to_nobody(backend):
    """Offsets need not start at zero, and there are no more rows of y than places."""
    offsets, x, weights = torch.tensor([4, 9, 12]), numbers(12, 30), numbers(2, 30, 40, seed=1)
    y = backend("grouped_mm", x, None, None, offsets, weights, False, 12)
    assert not y[:4].any()
    assert_same_numbers(y[4:9], x[4:9].double() @ weights[0].double())
    assert_same_numbers(y[9:], x[9:].double() @ weights[1].double())


@on((REFERENCE, *CPU))
def test_offsets_past_the_capacity_are_refused(backend):
    """They may count more tiles than a detector had room for; no kernel multiplies a part and says nothing."""
    tiles = torch.ones(10, 4, dtype=torch.bool)
    offsets, indices = shuffled(tiles, 0)
    index = offsets, indices[: offsets[5]].clone()
    a, b, values = numbers(40, 64), numbers(64, 20, seed=1), torch.ones(20, 4, 16)
    for op, args in (
        ("gather_mm", (a, *index, 4, 16, b[None], False)), ("sdd", (a, torch.eye(64), *index, 4, 16)),
        ("dsd", (values, *index, None, None, b, 40, False, False, None)), ("gather", (a, *index, 4, 16)),
        ("scatter", (values, *index, 40, 64)), ("transpose", (*index, 4)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="offsets must end at most at"):
            backend(op, *args)


@on(CPU)
def test_crowded_rows_of_tiles(backend):
    """All in one row, so that a share begins and ends inside it; and empty rows around it."""
    tiles = torch.zeros(9, 40_000, dtype=torch.bool)
    tiles[4] = True
    offsets, indices = index_of(tiles, 40_000)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        offsets_t, indices_t, _ = backend("transpose", offsets, indices, 40_000)
        assert torch.equal(offsets_t, torch.arange(40_001)) and (indices_t.int() == 4).all()
        again = backend("transpose", offsets_t, indices_t, 9)
        assert_same_bits(again[0], offsets)
        assert torch.equal(again[1].int(), torch.arange(40_000).int())


@on(EVERY)
def test_an_index_is_int32_where_16_bits_are_too_few(backend):
    for cols, dtype in ((65536, torch.uint16), (65537, torch.int32)):
        x = torch.zeros(1, cols)
        x[0, 3], x[0, -1], x[0, -2] = 1, 7, 5
        offsets, indices = backend("detect", x, 1, 1, 4, True)
        assert indices.dtype == dtype and indices.tolist() == [3, cols - 2, cols - 1, 0]
        values = backend("gather", x, offsets, indices, 1, 1)
        assert_same_bits(backend("scatter", values, offsets, indices, 1, cols), x)


@on(CPU)
def test_products_with_wide_indices(backend):
    k = 70_000
    tiles = torch.zeros(3, k, dtype=torch.bool)
    tiles[[0, 2, 2], [69_999, 3, 65_540]] = True
    of = shuffled(tiles)
    cover, a, b = covered(tiles, (6, k), (2, 1)), numbers(6, k), numbers(k, 3, seed=1)
    exact = a.where(cover, 0).double() @ b.double()
    assert_same_numbers(backend("gather_mm", a, *of, 2, 1, b[None], False), exact)
    values = gathered(a, *of, (2, 1))
    assert_same_numbers(backend("dsd", values, *of, None, None, b, 6, False, False, None), exact)
    # Many columns of b, of which rows that do not ascend come back to some.
    a, b = numbers(40, 64), numbers(66_000, 64, seed=1).t()
    column = torch.randint(0, 66_000, (40, 30)).unique(dim=1)
    column = column[:, torch.randperm(column.shape[1])]
    offsets = torch.arange(41) * column.shape[1]
    values = backend("sdd", a, b, offsets, column.flatten().int(), 1, 1)
    assert_same_numbers(values.flatten(), (a.double() @ b.double()).gather(1, column).flatten())


@on(EVERY)
def test_5000_tokens_on_one_of_64_experts(backend):
    """No capacity to overflow: a fixed room of 4096 tokens per expert once gave wrong numbers without a word."""
    tokens, experts, mine = (500, 6, 3) if backend.slow else (5000, 64, 37)
    offsets = torch.zeros(experts + 1, dtype=torch.int64)
    offsets[mine + 1 :] = tokens
    order = torch.randperm(tokens)
    x, weights, dy = numbers(tokens, 24), numbers(experts, 24, 40, seed=1), numbers(tokens, 40, seed=2)
    y = backend("grouped_mm", x, order, order, offsets, weights, False, tokens)
    assert_same_numbers(y, x.double() @ weights[mine].double())
    dw = backend("grouped_outer", x, dy, order, order, offsets)
    assert_same_numbers(dw[mine], x.double().t() @ dy.double())
    assert not dw[:mine].any() and not dw[mine + 1 :].any()


@on(CPU)
def test_slack_of_kept_memory_is_zero(backend):
    """Room of many pages is not cleared by the kernel; it comes again with what its last user left."""
    x = torch.zeros(4096, 4096, dtype=torch.int8)
    for present in ((7,), (), (5, 2**21, 2**23 + 77, 2**24 - 1)):
        x.zero_().view(-1)[list(present)] = 1
        offsets, indices = backend("detect", x, 1, 1, x.numel(), True)
        assert offsets[-1] == len(present) and indices[: len(present)].tolist() == [i % 4096 for i in present]
        assert indices.numel() == x.numel() and not indices[len(present) :].view(torch.int16).any()
        indices.fill_(9)
        del indices

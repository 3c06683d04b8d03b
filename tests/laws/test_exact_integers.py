"""Law: a product of integers is the dense product of what the tiles hold, to the last bit, by every algorithm.

Rows in random order, nonsense in slack indices, NaN wherever a kernel has no business to look: in slack and padding of
values, in rows and columns that meet no tile.
"""

import itertools
from itertools import pairwise

import torch
from backends import CPU, EVERY, REFERENCE, examples, interpreted, on
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_numbers, covered, divided, gathered, index, numbers, scattered, shuffled, spoilt

from gossamer.testing import PRODUCTS, product, strategies

NAN = torch.nan
EIGHT_BYTES = product("3 x 5")
NAMES = ["elements", "16 x 16, ragged", "8 x 1", "3 x 5"]
EXACT = [*((c, torch.float32) for c in PRODUCTS), *((product(name), torch.float64) for name in NAMES)]
SHORT = [(product(name), dtype) for name in NAMES for dtype in (torch.bfloat16, torch.float16)]
OF_SHORT = [backend for backend in EVERY if not backend.few_dtypes]


def small(of):
    """The interpreter takes a program for each tile of the result; numbers of 8 bytes in tiles that divide nothing."""
    case, dtype = of
    few = dtype != torch.float64 or case is EIGHT_BYTES
    return few and max(case.case.grid) <= 40 and case.case.rows * case.case.cols <= 8000 and case.n <= 40


def few_tiles(of):
    """It takes a program for each tile that is multiplied, too; scaled bytes are of single elements."""
    return small(of) and of[0].case.grid[0] * of[0].case.grid[1] <= 100


def spread(x, transposed=False):
    """The same numbers as part of a wider matrix of NaN, or as the transposed view of such a part."""
    x = x.mT if transposed else x
    room = torch.full((*x.shape[:-1], x.shape[-1] + 3), NAN, dtype=x.dtype)
    room[..., 1:-2] = x
    return room[..., 1:-2].mT if transposed else room[..., 1:-2]


def read(b, cover):
    """b with NaN in the rows that meet no tile."""
    return b.masked_fill(~cover.any(0).unsqueeze(1), NAN)


def operands(c, dtype):
    """(offsets, indices), which elements lie in a tile, S, and two dense operands."""
    cover = covered(c.case.tiles(), c.case.shape, c.case.tile)
    s = numbers(*c.case.shape, dtype=dtype).where(cover, 0)
    rows, k = c.case.shape
    return index(c), cover, s, numbers(k, c.n, dtype=dtype, seed=1), numbers(rows, c.n, dtype=dtype, seed=2)


@on(EVERY, "case, dtype", EXACT, small=few_tiles)
def test_dsd(backend, case, dtype):
    check_dsd(backend, case, dtype)


@on(OF_SHORT, "case, dtype", SHORT, small=small)
def test_dsd_of_short_floats(backend, case, dtype):
    check_dsd(backend, case, dtype)


def check_dsd(backend, case, dtype):
    of, cover, s, b, dc = operands(case, dtype)
    rows, k = s.shape
    values = spoilt(gathered(s, *of, case.case.tile), *of, s.shape)
    expected, b = s.double() @ b.double(), read(b, cover)
    layouts = [(b, False), (b.t().contiguous().t(), True), (spread(b), True), (spread(b, True), False)]
    for view, column_major in layouts[:2] if backend.compiles else layouts:
        c = backend("dsd", values, *of, None, None, view, rows, False, column_major, None)
        assert_same_numbers(c, expected)
        assert (c.t() if column_major else c).is_contiguous()
    *transposed, order = REFERENCE("transpose", *of, case.case.grid[1])
    c = backend("dsd", values, *transposed, order, None, read(dc, cover.t()), k, True, False, None)
    assert_same_numbers(c, s.double().t() @ dc.double())
    divided_too = dtype == torch.float32 and case.case.grid[0] <= 1000  # plain Python divides
    for parts, at_random in ((3, True), (5, False)) if divided_too else ():
        work = divided(of[0], parts, at_random)
        assert_same_numbers(backend("dsd", values, *of, None, None, b, rows, False, False, work), expected)


@on(EVERY, "case", [product(name) for name in NAMES])
def test_dsd_of_scaled_bytes(backend, case):
    """Forwards and flipped: a tile is its bytes times its scale."""
    of, cover, s, b, dc = operands(case, torch.float32)
    rows, k = s.shape
    tiles = gathered(s, *of, case.case.tile)
    scale = 2.0 ** torch.randint(-3, 4, (len(tiles),))
    exact = scattered(tiles * scale.view(-1, 1, 1), *of, s.shape).double()
    values = spoilt(tiles.to(torch.int8), *of, s.shape)
    c = backend("dsd", values, *of, None, scale, read(b, cover), rows, False, False, None)
    assert_same_numbers(c, exact @ b.double())
    *transposed, order = REFERENCE("transpose", *of, case.case.grid[1])
    c = backend("dsd", values, *transposed, order, scale, read(dc, cover.t()), k, True, False, None)
    assert_same_numbers(c, exact.t() @ dc.double())


@on(EVERY, "case, dtype", EXACT, small=small)
def test_sdd(backend, case, dtype):
    check_sdd(backend, case, dtype)


@on(OF_SHORT, "case, dtype", SHORT, small=small)
def test_sdd_of_short_floats(backend, case, dtype):
    check_sdd(backend, case, dtype)


def check_sdd(backend, case, dtype):
    """Slack and padding are zero; what no tile names may hold anything."""
    of, cover, _, b, dc = operands(case, dtype)
    expected = gathered((dc.double() @ b.double().t()), *of, case.case.tile)
    dc, b = read(dc, cover.t()), read(b, cover)
    layouts = [(dc, b.t()), (dc.t().contiguous().t(), b.t().contiguous()), (spread(dc, True), spread(b.t()))]
    for left, right in layouts[:2] if backend.compiles else layouts:
        assert_same_numbers(backend("sdd", left, right, *of, *case.case.tile), expected)


@on(EVERY, "case, dtype", EXACT, small=small)
def test_gather_mm(backend, case, dtype):
    check_gather_mm(backend, case, dtype)


@on(OF_SHORT, "case, dtype", SHORT, small=small)
def test_gather_mm_of_short_floats(backend, case, dtype):
    check_gather_mm(backend, case, dtype)


def check_gather_mm(backend, case, dtype):
    of, cover, s, b, _ = operands(case, dtype)
    a, expected, b = s.masked_fill(~cover, NAN), s.double() @ b.double(), read(b, cover)
    for view, column_major in ((b, False), (b.t().contiguous().t(), True)):
        c = backend("gather_mm", a, *of, *case.case.tile, view[None], column_major)
        assert_same_numbers(c, expected)
        assert (c.t() if column_major else c).is_contiguous()


@on(EVERY, "tile", [(1, 40), (1, 64), (8, 1), (5, 16)])
def test_gather_mm_of_a_batch(backend, tile):
    """Rows present or absent as a whole, and other tiles; a list of rows longer than a block, and none."""
    for batch, density in ((3, 0.4),) if backend.slow else ((3, 0.0), (3, 0.4), (1, 1.0)):
        shape = batch * 80, 40
        tiles = torch.rand(-(-shape[0] // tile[0]), -(-40 // tile[1])) < density
        cover, of = covered(tiles, shape, tile), shuffled(tiles)
        a, b = numbers(*shape), numbers(batch, 40, 5, seed=1)
        exact = (a.where(cover, 0).view(batch, 80, 40).double() @ b.double()).view(-1, 5)
        a = a.masked_fill(~cover, NAN)
        for column_major in (False, True):
            assert_same_numbers(backend("gather_mm", a, *of, *tile, b, column_major), exact)
        shared = b[:1].expand(batch, -1, -1)  # one matrix for the whole batch
        exact = a.nan_to_num().double() @ b[0].double()
        assert_same_numbers(backend("gather_mm", a, *of, *tile, shared, False), exact)


def grouped(x, source, target, offsets, weights, transposed, out_rows):
    y = torch.zeros(out_rows, weights.shape[1 if transposed else 2], dtype=torch.float64)
    for matrix, (start, end) in zip(weights.double(), pairwise(offsets.tolist()), strict=True):
        y[target[start:end].long()] = x.double()[source[start:end].long()] @ (matrix.t() if transposed else matrix)
    return y


def outer(x, dy, source, target, offsets):
    spans = pairwise(offsets.tolist())
    return torch.stack([x.double()[source[s:e].long()].t() @ dy.double()[target[s:e].long()] for s, e in spans])


GROUPS = {
    "empty, full, long": [0, 0, 3, 40, 40, 41, 150],
    "begins late, ends early": [5, 17, 18, 18, 130],
    "one": [0, 150],
    "none named": [4, 4, 4],
    "all in the last": [0, 0, 0, 150],
    "a token each": list(range(20)),
}


def check_grouped(backend, offsets, k, n, dtype, named="both", listed=torch.int64):
    offsets, tokens = torch.tensor(offsets), max(offsets[-1], 1)
    x, dy = numbers(tokens, k, dtype=dtype), numbers(tokens + 50, n, dtype=dtype, seed=1)
    source = torch.randint(0, tokens, (tokens,)).to(listed) if named in ("both", "source") else None
    target = torch.randperm(tokens + 50)[:tokens].to(listed) if named in ("both", "target") else None
    places = [torch.arange(tokens) if place is None else place for place in (source, target)]
    for transposed in (False, True):
        weights = numbers(len(offsets) - 1, *((n, k) if transposed else (k, n)), dtype=dtype, seed=2)
        y = backend("grouped_mm", x, source, target, offsets, weights, transposed, tokens + 50)
        assert_same_numbers(y, grouped(x, *places, offsets, weights, transposed, tokens + 50))
    dw = backend("grouped_outer", x, dy, source, target, offsets)
    assert_same_numbers(dw, outer(x, dy, *places, offsets))


def named_together(of):
    """The interpreter takes the ways to name rows at one of the groupings."""
    return of[1] == "both" or of[0] == "begins late, ends early"


@on(EVERY, "name, named", itertools.product(GROUPS, ("both", "source", "target", "neither")), small=named_together)
def test_grouped(backend, name, named):
    dtypes = [(torch.float32, torch.int32), (torch.bfloat16, torch.int64), (torch.float64, torch.int64)]
    for dtype, listed in dtypes[: 1 + (named == "both")] if backend.slow else dtypes:
        if not (backend.few_dtypes and dtype.itemsize == 2):
            check_grouped(backend, GROUPS[name], 20, 7, dtype, named, listed)


FEW_ROWS = [(2, 600, 100), (1, 37, 530), (3, 1030, 20), (8, 512, 65), (11, 64, 70), (1, 1, 1), (2, 0, 5), (0, 5, 5)]
FEW_ROWS += [(3, 8, 16), (8, 65, 257), (9, 100, 63), (17, 24, 33), (2, 12, 4500), (2, 4500, 12)]


def sparse(*shape, density=0.3, dtype=torch.float32):
    return (numbers(*shape, dtype=dtype, seed=sum(shape)) * (torch.rand(shape) < density)).to(dtype)


@on(CPU, "shape", FEW_ROWS)
def test_linears_of_few_rows(backend, shape):
    """Sums of half types are exact, and rounded once."""
    rows, c, k = shape
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, w = sparse(rows, c, dtype=dtype), numbers(k, c, dtype=dtype)
        for bias in (None, sparse(k, dtype=dtype, density=0.9)):
            exact = x.double() @ w.double().t() + (0 if bias is None else bias.double())
            assert_same_numbers(backend("few_rows", x, w, bias), exact.to(dtype))


@on(EVERY, "shape", FEW_ROWS, small=lambda shape: shape in FEW_ROWS[:8])
def test_few_rows(backend, shape):
    """Rows of weights that nobody needs are NaN; sums of the short floats stay below 256, where their integers end."""
    rows, c, k = shape
    dtypes = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
    if not backend.few_dtypes and shape == FEW_ROWS[0]:
        dtypes += [(torch.float16, torch.float16), (torch.float64, torch.float64)]
    if backend.slow:
        dtypes = dtypes if shape == FEW_ROWS[0] else dtypes[:1]
    for dtype, stored in dtypes:
        for density, with_bias in ((0.05, True),) if backend.slow else ((0.05, True), (0.3, False)):
            bias = sparse(k, dtype=dtype, density=0.9) if with_bias else None
            x, gate = sparse(rows, c, dtype=dtype, density=density), sparse(rows, k, dtype=dtype)
            addend = 0 if bias is None else bias.double()
            for threshold in (0.0, 1.0):
                kept = x.double().where(x.abs() > threshold, 0)
                w = sparse(c, k, dtype=stored, density=1.0)
                exact = kept @ w.double() + addend
                y, count = backend("skip_mv", x, w.masked_fill((kept == 0).all(0).unsqueeze(1), NAN), bias, threshold)
                assert_same_numbers(y, exact.to(dtype))
                assert count.tolist() == [int((kept != 0).sum())] and count.dtype == torch.int64
            up = sparse(k, c, dtype=stored, density=1.0)
            exact = gate.double() * (x.double() @ up.double().t() + addend)
            y = backend("gated_mv", x, up.masked_fill((gate == 0).all(0).unsqueeze(1), NAN), bias, gate)
            assert_same_numbers(y, exact.to(dtype))
            assert not y[gate == 0].signbit().any()


# Around a tile of registers, the strips of 16 columns, a block of 256 deep and one of 512 columns; tiles of whole rows,
# columns of a band, blocks, pieces of rows, single elements, and higher and wider than the matrix.
TILES = [(1, 1), (1, 3), (1, 16), (1, 1000), (3, 1), (32, 1), (100, 1), (2, 2), (3, 5), (4, 4), (7, 6), (4, 16),
         (16, 4), (16, 16), (2, 64), (17, 35), (64, 64), (70, 300)]  # fmt: skip
SHAPES = [(1, 1, 1), (5, 3, 9), (13, 70, 33), (65, 257, 64), (150, 520, 7), (3, 300, 600), (37, 53, 100)]
# Some of the tiles everywhere, all of them at every second size, none at one.
FILLED = [*((shape, 0.3) for shape in SHAPES), *((shape, 1.0) for shape in SHAPES[1::2]), (SHAPES[2], 0.0)]


def thinned(shape, tile, density, dtype):
    """(offsets, indices), S and which of its elements lie in a tile."""
    tiles = torch.rand(-(-shape[0] // tile[0]), -(-shape[1] // tile[1])) < density
    cover = covered(tiles, shape, tile)
    return shuffled(tiles), numbers(*shape, dtype=dtype).where(cover, 0), cover


@on(CPU, "tile", TILES)
def test_around_the_blocks_of_the_kernels(backend, tile):
    for i, ((rows, k, n), density) in enumerate(FILLED):
        dtype = torch.float64 if i % 3 == 2 else torch.float32
        of, s, cover = thinned((rows, k), tile, density, dtype)
        b, dc = numbers(k, n, dtype=dtype, seed=1), numbers(rows, n, dtype=dtype, seed=2)
        exact, exact_t, b = s.double() @ b.double(), s.double().t() @ dc.double(), read(b, cover)
        values = spoilt(REFERENCE("gather", s, *of, *tile), *of, s.shape)
        view = b.t().contiguous().t() if i % 2 else b
        assert_same_numbers(backend("dsd", values, *of, None, None, view, rows, False, i % 5 < 2, None), exact)
        *flipped, order = REFERENCE("transpose", *of, -(-k // tile[1]))
        order = order.long() if i % 2 else order
        dense = read(dc, cover.t())
        assert_same_numbers(backend("dsd", values, *flipped, order, None, dense, k, True, i % 5 < 2, None), exact_t)
        work = divided(of[0], 1 + i % 5, bool(i % 2))
        assert_same_numbers(backend("dsd", values, *of, None, None, view, rows, False, False, work), exact)
        a = s.masked_fill(~cover, NAN)
        assert_same_numbers(backend("gather_mm", a, *of, *tile, view[None], i % 5 < 2), exact)


@on(CPU, "tile", [tile for tile in TILES if max(tile) < 100])
def test_sampled_around_the_blocks_of_the_kernels(backend, tile):
    turn = itertools.count()
    for (m, k, n), density in itertools.product((*SHAPES[:4], (20, 1030, 50), (70, 129, 67)), (0.0, 0.3, 1.0)):
        i = next(turn)
        dtype = torch.float64 if i % 3 == 2 else torch.float32
        of, _, cover = thinned((m, n), tile, density, dtype)
        a, b = numbers(m, k, dtype=dtype, seed=1), numbers(k, n, dtype=dtype, seed=2)
        expected = REFERENCE("gather", a.double() @ b.double(), *of, *tile)
        a, b = read(a, cover.t()), read(b.t(), cover).t()
        for left, right in ((False, True), (True, False), (False, False), (True, True)):
            got = backend("sdd", spread(a, left), spread(b, right), *of, *tile)
            assert_same_numbers(got, expected)


@on(CPU, "shape", [(1, 1, 1), (100, 40, 33), (300, 70, 7), (40, 300, 600), (700, 33, 64)])
def test_groups_around_the_blocks_of_the_kernels(backend, shape):
    tokens, k, n = shape
    skewed = (torch.rand(17).pow(4).sort().values * tokens).long().tolist()
    for offsets in ([0, *(i * tokens // 6 for i in range(1, 7))], [0, *skewed], [0, 0, tokens]):
        for dtype in (torch.float32, torch.float64):
            check_grouped(backend, offsets, k, n, dtype)


@on((REFERENCE, *CPU))
@given(p=strategies.patterns(max_rows=40, max_cols=40), n=st.integers(0, 20), seed=st.integers(0, 2**16))
@examples
def test_any_pattern(backend, p, n, seed):
    of, (rows, k) = (p.offsets, p.indices), p.shape
    s = numbers(rows, k, seed=seed).where(p.to_mask(), 0)
    b, a = numbers(k, n, seed=seed + 1), numbers(rows, n, seed=seed + 2)
    values = spoilt(gathered(s, *of, p.tile), *of, p.shape)
    exact = s.double() @ b.double()
    assert_same_numbers(backend("dsd", values, *of, None, None, b, rows, False, False, None), exact)
    dense = s.masked_fill(~p.to_mask(), NAN)
    assert_same_numbers(backend("gather_mm", dense, *of, *p.tile, b[None], False), exact)
    sampled = gathered(a.double() @ b.double().t(), *of, p.tile)
    assert_same_numbers(backend("sdd", a, b.t(), *of, *p.tile), sampled)


def test_parts_that_are_ranges_are_added_from_what_they_kept():
    """In the interpreter, where a test reaches into memory between two kernels: no second computation hides there."""
    kept, spoilt_rows, split = interpreted("spoil", "partial_sums")
    assert len(split) >= 3 and kept >= 2 * len(split) - 1 and spoilt_rows == split

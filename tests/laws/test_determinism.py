"""Law: bits depend on the numbers alone: not on the run, the team, the layouts, or on what is computed beside them."""

import torch
from backends import CPU, on
from oracles import covered, divided, shuffled, tiles_of

from gossamer.testing import assert_same_bits

TILES = [(1, 1), (2, 2), (4, 4), (16, 16), (1, 16), (32, 1), (24, 3), (128, 128), (1, 2000)]
TEAMS = (2, 3, 7)


def crowded(shape, tile, density=0.1):
    """A row of tiles that is full, among rows of few and of none."""
    tiles = torch.rand(-(-shape[0] // tile[0]), -(-shape[1] // tile[1])) < density
    tiles[len(tiles) // 3 : len(tiles) // 2] = False
    tiles[len(tiles) // 2] = True
    return shuffled(tiles), covered(tiles, shape, tile)


def in_every_team(run):
    """The result with one thread, after others gave the same bits."""
    first = run()
    for threads in (*TEAMS, 1):
        torch.set_num_threads(threads)
        for one, two in zip(first, run(), strict=True):
            assert_same_bits(one, two)
    return first


@on(CPU, "tile", [(1, 1), (16, 16), (32, 1), (3, 5)])
def test_ops_of_structure(backend, tile):
    for shape in ((4096, 64), (16, 20_000), (700, 900)):
        x = torch.randn(shape).where(torch.rand(shape) < 0.1, 0)
        tiles = tiles_of(x, tile)

        def run(x=x, tiles=tiles):
            of = backend("detect", x, *tile, tiles.numel(), True)
            values = backend("gather", x, *of, *tile)
            dense = backend("scatter", values, *of, *x.shape)
            return (*of, values, dense, *backend("transpose", *of, tiles.shape[1]))

        assert_same_bits(in_every_team(run)[3], x)


@on(CPU, "tile", TILES)
def test_products(backend, tile):
    """Not on threads, on the layouts of b and c, or on the columns beside."""
    doubles = tile in ((1, 1), (16, 16), (24, 3))  # once by elements, by squares, by what is neither
    for dtype in (torch.float32, torch.float64) if doubles else (torch.float32,):
        of, cover = crowded((400, 300), tile)
        s = torch.randn(400, 300, dtype=dtype).where(cover, 0)
        values, b, dc = (
            backend("gather", s, *of, *tile), torch.randn(300, 161, dtype=dtype), torch.randn(400, 161, dtype=dtype),
        )  # fmt: skip
        *flipped, order = backend("transpose", *of, -(-300 // tile[1]))
        work = divided(of[0], 3, True)

        def results(b, column_major=False, of=of, values=values, s=s, work=work):
            return (
                backend("dsd", values, *of, None, None, b, 400, False, column_major, None).contiguous(),
                backend("gather_mm", s, *of, *tile, b[None], column_major).contiguous(),
                backend("dsd", values, *of, None, None, b, 400, False, column_major, work).contiguous(),
            )

        def run(b=b, dc=dc, of=of, values=values, flipped=flipped, order=order):
            transposed = backend("dsd", values, *flipped, order, None, dc, 300, True, False, None)
            return *results(b), transposed, backend("sdd", dc, b.t(), *of, *tile)

        expected = in_every_team(run)
        other = b.t().contiguous().t()
        for layout in (b, other):
            for columns in (slice(None), slice(7, 8), slice(7, 57)):
                for got, whole in zip(results(layout[:, columns], layout is other), expected, strict=False):
                    assert_same_bits(got, whole[:, columns].contiguous())


@on(CPU, "tile", [(1, 1), (1, 16), (32, 1), (8, 8), (3, 5)])
def test_sampled_products(backend, tile):
    """Also by rows and by columns of many terms, where a crowded row is cut in two."""
    of, _ = crowded((260, 300), tile, 0.05)
    a, b = torch.randn(260, 700), torch.randn(700, 300)
    for left, right in ((a, b.t().contiguous().t()), (a.t().contiguous().t(), b)):
        in_every_team(lambda left=left, right=right: (backend("sdd", left, right, *of, *tile),))


@on(CPU)
def test_a_sampled_element_does_not_depend_on_its_neighbours(backend):
    """The same element has the same bits in any pattern of single elements: batches differ, sums do not."""
    a, b = torch.randn(9, 259), torch.randn(259, 200)
    of = shuffled(torch.ones(9, 200, dtype=torch.bool), 0)
    every = backend("scatter", backend("sdd", a, b, *of, 1, 1), *of, 9, 200)
    for density in (0.02, 0.3):
        tiles = torch.rand(9, 200) < density
        of = shuffled(tiles, 0)
        some = backend("scatter", backend("sdd", a, b, *of, 1, 1), *of, 9, 200)
        assert_same_bits(some, every.where(tiles, 0.0))


@on(CPU)
def test_groups(backend):
    for tokens, k, n in ((40, 300, 600), (700, 33, 64)):
        skewed = (torch.rand(6).pow(4).sort().values * tokens).long()
        for ends in (skewed, torch.full((6,), tokens)):
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
            source, target = torch.randint(0, tokens, (tokens,)), torch.randperm(tokens + 2)[:tokens]
            x, dy, weights = torch.randn(tokens, k), torch.randn(tokens + 2, n), torch.randn(6, k, n)
            flipped = weights.transpose(1, 2).contiguous()

            def run(of=(source, target, offsets), x=x, dy=dy, weights=weights, flipped=flipped, rows=tokens + 2):
                y = backend("grouped_mm", x, *of, weights, False, rows)
                # A group of few rows is summed in another order, and how many are few depends on the layout.
                torch.testing.assert_close(backend("grouped_mm", x, *of, flipped, True, rows), y, rtol=1e-4, atol=1e-4)
                return y, backend("grouped_outer", x, dy, *of)

            in_every_team(run)


@on(CPU)
def test_few_rows(backend):
    """Nor on the other rows of x."""
    x, w, gate = (torch.randn(*shape) for shape in ((9, 400), (400, 1000), (9, 1000)))
    x[torch.rand(9, 400) < 0.5], gate[torch.rand(9, 1000) < 0.5] = 0, 0
    up = w.view(1000, 400)
    y, z = in_every_team(lambda: (backend("skip_mv", x, w, None, 0.0)[0], backend("gated_mv", x, up, None, gate)))
    for row in range(9):
        mine = slice(row, row + 1)
        assert_same_bits(backend("skip_mv", x[mine], w, None, 0.0)[0], y[mine])
        assert_same_bits(backend("gated_mv", x[mine], up, None, gate[mine]), z[mine])


@on(CPU, "dtype", [torch.float32, torch.bfloat16])
def test_linears_of_few_rows(backend, dtype):
    """Nor on the other rows of x, however many."""
    x, w, bias = (torch.randn(*shape).to(dtype) for shape in ((29, 401), (1003, 401), (1003,)))
    y = in_every_team(lambda: (backend("few_rows", x, w, bias),))[0]
    for few in (1, 2, 3, 4, 7, 28):
        assert_same_bits(backend("few_rows", x[:few], w, bias), y[:few])
        assert_same_bits(backend("few_rows", x[few:], w, bias), y[few:])


@on(CPU)
def test_sums_of_a_split_row_are_added_in_order_of_part(backend):
    """1e8 + 1 is 1e8 in float32: the order shows."""
    values = torch.tensor([1.0, 1e8, -1e8]).view(3, 1, 1)
    offsets, indices, b = torch.tensor([0, 3]), torch.tensor([0, 1, 2], dtype=torch.uint16), torch.ones(3, 1)
    for order, expected in (([0, 1, 2], 0.0), ([1, 0, 2], 0.0), ([1, 2, 0], 1.0)):
        work = torch.tensor([[[0, s, s + 1]] for s in order])
        assert backend("dsd", values, offsets, indices, None, None, b, 1, False, False, work).item() == expected

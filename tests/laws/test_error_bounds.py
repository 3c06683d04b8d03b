"""Law: a product of real numbers is within gamma(terms) |S| |b| of that in float64, whatever order its sums take."""

import pytest
import torch
from backends import CPU, EVERY, on
from oracles import covered, shuffled, tiles_of

from gossamer.testing import assert_within, gamma

REAL = [torch.float32, torch.float64]
TILES = [(1, 1), (4, 4), (16, 16), (3, 5), (32, 1), (1, 16), (80, 7), (1, 1000)]
ON_GPU = [((1, 1), 0.02), ((4, 4), 0.05), ((16, 16), 0.1), ((64, 64), 0.3), ((32, 1), 0.1), ((128, 128), 0.5)]


def sizes(backend):
    """(rows, k, n): several blocks of every kernel each way, ragged; a few for the interpreter."""
    return (30, 53, 21) if backend.slow else (130, 300, 40)


def thinned(shape, tile, density, dtype):
    cover = covered(torch.rand(-(-shape[0] // tile[0]), -(-shape[1] // tile[1])) < density, shape, tile)
    s = torch.randn(shape, dtype=torch.float64).where(cover, 0).to(dtype)
    return s, shuffled(tiles_of(cover, tile)), cover


@on(EVERY, "tile", TILES, small=lambda tile: min(tile) > 1)
def test_products(backend, tile):
    rows, k, n = sizes(backend)
    for dtype in REAL if backend.few_dtypes else REAL[:1]:
        check(backend, (rows, k, n), tile, 0.4, dtype)


@on(EVERY[-1:], "tile, density", ON_GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_products(backend, tile, density, dtype):
    check(backend, (1500, 2050, 520), tile, density, dtype)


def check(backend, sizes, tile, density, dtype):
    rows, k, n = sizes
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    s, of, cover = thinned((rows, k), tile, density, dtype)
    b, dc = torch.randn(k, n, dtype=torch.float64).to(dtype), torch.randn(rows, n, dtype=torch.float64).to(dtype)

    def bounded(got, left, right, where=None):
        exact, size = left.double() @ right.double(), left.double().abs() @ right.double().abs()
        if where is not None:
            exact, size = exact.where(where, 0), size.where(where, 0)
        assert_within(got, exact, gamma(left.shape[1] + 1, accumulated) * size)

    values = backend("gather", s, *of, *tile)
    bounded(backend("dsd", values, *of, None, None, b, rows, False, False, None), s, b)
    *transposed, order = backend("transpose", *of, -(-k // tile[1]))
    bounded(backend("dsd", values, *transposed, order, None, dc, k, True, False, None), s.t(), dc)
    bounded(backend("gather_mm", s, *of, *tile, b[None], False), s, b)
    sampled = backend("sdd", dc, b.t(), *of, *tile)
    bounded(backend("scatter", sampled, *of, rows, k), dc, b.t(), cover)


@on(EVERY, "dtype", [torch.float32])
def test_groups(backend, dtype):
    for kind in REAL if backend.few_dtypes else [dtype]:
        tokens, k, n = (90, 300, 45) if not backend.slow else (40, 70, 20)
        offsets = torch.tensor([0, 0, 11, tokens // 2, tokens])
        source, target = torch.randint(0, tokens, (tokens,)), torch.randperm(tokens)
        x, dy, weights = (torch.randn(*shape, dtype=kind) for shape in ((tokens, k), (tokens, n), (4, k, n)))
        y = backend("grouped_mm", x, source, target, offsets, weights, False, tokens)
        dw = backend("grouped_outer", x, dy, source, target, offsets)
        for group in range(4):
            mine = slice(int(offsets[group]), int(offsets[group + 1]))
            left, back = x[source[mine]].double(), dy[target[mine]].double()
            exact, size = left @ weights[group].double(), left.abs() @ weights[group].double().abs()
            assert_within(y[target[mine]], exact, gamma(k, kind) * size)
            assert_within(dw[group], left.t() @ back, gamma(tokens, kind) * (left.abs().t() @ back.abs()))


@on(EVERY, "stored", [torch.float32, torch.bfloat16])
def test_few_rows(backend, stored):
    rows, c, k = (2, 900, 70) if backend.slow else (4, 1500, 700)
    x, w, gate = torch.randn(rows, c), torch.randn(c, k).to(stored), torch.randn(rows, k).relu()
    kept = x.where(x.abs() > 0.7, 0).double()
    y, _ = backend("skip_mv", x, w, None, 0.7)
    assert_within(y, kept @ w.double(), gamma(c, torch.float32) * (kept.abs() @ w.double().abs()))
    size = gate.double() * (x.double().abs() @ w.double().abs())
    y = backend("gated_mv", x, w.t().contiguous(), None, gate)
    assert_within(y, gate.double() * (x.double() @ w.double()), gamma(c + 1, torch.float32) * size)
    if backend.kernels == "cpu":
        few = x.to(stored)
        y = backend("few_rows", few, w.t().contiguous(), None)
        exact, size = few.double() @ w.double(), few.double().abs() @ w.double().abs()
        rounded = torch.finfo(stored).eps / 2 * exact.abs() if stored != torch.float32 else 0
        assert_within(y, exact, gamma(c + 1, torch.float32) * size + rounded)


# The interpreter truncates what it stores in short floats.
@on(
    [backend for backend in EVERY if not (backend.few_dtypes or backend.slow)], "dtype", [torch.float16, torch.bfloat16]
)
def test_short_floats_are_summed_in_float32(backend, dtype):
    for tile in ((16, 16), (3, 5), (8, 1)):
        check(backend, sizes(backend), tile, 0.4, dtype)


@on(CPU, "storage", [torch.bfloat16, torch.int8])
def test_short_storage(backend, storage):
    """bfloat16 and int8 values are what they are in float32, times the scale of their tile, forwards and flipped."""
    for tile in ((1, 1), (4, 4), (16, 16), (1, 16), (3, 5)):
        s, of, _ = thinned((70, 130), tile, 0.4, torch.float32)
        values = backend("gather", s, *of, *tile).mul(20).clamp(-127, 127).to(storage)
        scale = torch.rand(len(values)) + 0.5
        wide = backend("scatter", values.double() * scale.double().view(-1, 1, 1), *of, 70, 130)
        b, dc = torch.randn(130, 33), torch.randn(70, 33)
        *transposed, order = backend("transpose", *of, -(-130 // tile[1]))
        for left, right, got in (
            (wide, b, backend("dsd", values, *of, None, scale, b, 70, False, False, None)),
            (wide.t(), dc, backend("dsd", values, *transposed, order, scale, dc, 130, True, False, None)),
        ):
            exact, size = left @ right.double(), left.abs() @ right.double().abs()
            assert_within(got, exact, gamma(left.shape[1] + 2, torch.float32) * size)

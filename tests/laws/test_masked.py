"""Law: masked, not multiplied by zero. What is not finite reaches exactly what its tile, group or row touches."""

import pytest
import torch
from backends import CPU, EVERY, REFERENCE, on
from oracles import covered, shuffled, tiles_of

NOT_FINITE = pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
TILES = [(1, 1), (1, 4), (4, 1), (4, 4), (16, 16), (3, 5), (32, 1), (1, 64)]


def ones(tile, shape=(40, 64), density=0.3):
    """A pattern, S = 1 under its tiles, and which elements those are."""
    cover = covered(torch.rand(-(-shape[0] // tile[0]), -(-shape[1] // tile[1])) < density, shape, tile)
    return shuffled(tiles_of(cover, tile)), cover


@NOT_FINITE
@on(EVERY, "tile", TILES, small=lambda tile: min(tile) > 1)
def test_a_row_of_b_reaches_the_rows_whose_tiles_read_it(backend, tile, bad):
    """A tile that is present multiplies, also by zero."""
    of, cover = ones(tile)
    values = backend("gather", cover.float(), *of, *tile)
    for row in (37,) if backend.slow else (0, 37, 63):
        b = torch.ones(64, 20)
        b[row] = bad
        read = cover[:, row]
        for c in (
            backend("dsd", values, *of, None, None, b, 40, False, False, None),
            backend("gather_mm", cover.float(), *of, *tile, b[None], False),
        ):
            assert torch.equal(c.isfinite().all(1), ~read) and torch.equal(c.isfinite().any(1), ~read)
            assert torch.equal(c[~read], cover.float()[~read] @ torch.ones(64, 20))


@NOT_FINITE
@on(EVERY, "tile", TILES, small=lambda tile: min(tile) > 1)
def test_one_bad_value_stays_in_its_row(backend, tile, bad):
    of, _ = ones(tile, density=2.0)
    a, b = torch.ones(40, 30), torch.ones(30, 64)
    a[6, 29] = bad
    dense = backend("scatter", backend("sdd", a, b, *of, *tile), *of, 40, 64)
    assert not dense[6].isfinite().any() and (dense[torch.arange(40) != 6] == 30).all()
    s = torch.ones(40, 64)
    s[17, 5] = bad
    for c in (
        backend("gather_mm", s, *of, *tile, torch.ones(1, 64, 8), False),
        backend("dsd", backend("gather", s, *of, *tile), *of, None, None, torch.ones(64, 8), 40, False, False, None),
    ):
        assert not c[17].isfinite().any() and (c[torch.arange(40) != 17] == 64).all()


@on(EVERY)
def test_weights_of_an_empty_group_and_tokens_of_none(backend):
    offsets = torch.tensor([0, 3, 3, 5])
    x, weights, dy = torch.ones(6, 20), torch.ones(3, 20, 30), torch.ones(6, 30)
    weights[1] = torch.nan
    x[5], dy[5] = torch.inf, torch.nan
    y = backend("grouped_mm", x, None, None, offsets, weights, False, 6)
    assert (y[:5] == 20).all() and not y[5].any()
    dw = backend("grouped_outer", x, dy, None, None, offsets)
    assert (dw[0] == 3).all() and not dw[1].any() and (dw[2] == 2).all()


@on((REFERENCE, *CPU))
def test_places_beyond_the_last_group_are_not_looked_at(backend):
    offsets = torch.tensor([0, 2, 3])
    source, target = torch.tensor([1, 0, 1, 1]), torch.tensor([4, 0, 2, 3])
    x, weights = torch.ones(2, 30), torch.ones(2, 30, 40)
    y = backend("grouped_mm", x, source, target, offsets, weights, False, 5)
    assert y[:, 0].tolist() == [30, 0, 30, 0, 30]
    assert backend("grouped_outer", x, y, source, target, offsets)[:, 0, 0].tolist() == [60, 30]


@on(EVERY)
def test_a_row_used_by_one_does_not_reach_another(backend):
    """Both are read, but each row of x takes its own: Inf in one must not become NaN in the other."""
    x, w = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[torch.inf] * 40, [3.0] * 40])
    y, _ = backend("skip_mv", x, w, None, 0.0)
    assert (y[0] == torch.inf).all() and (y[1] == 6).all()
    y = backend("gated_mv", torch.ones(2, 40), w, None, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    assert y.tolist() == [[0, 120], [torch.inf, 0]]


# Each in a place of its own; the first two count as zero, and the others as zero up to a threshold.
VALUES = [-0.0, 0.0, 2.0**-128, -(2.0**-128), torch.inf, torch.nan, -1.0, 1.0]


@on(EVERY, "threshold, dropped", [(0.0, {0, 1}), (1.0, {0, 1, 2, 3, 6, 7}), (torch.inf, {0, 1, 2, 3, 4, 6, 7})])
def test_what_a_threshold_drops(backend, threshold, dropped):
    """-0.0 and what equals the threshold; not infinities above it, nor NaN. A dropped row's NaN reaches nobody."""
    x = torch.tensor([VALUES])
    assert backend("skip_mv", x, torch.ones(8, 1), None, threshold)[1].item() == 8 - len(dropped)
    for place in range(8):
        w = torch.zeros(8, 70)
        w[place] = torch.nan
        alone = x.where(torch.arange(8) == place, 0)
        y, _ = backend("skip_mv", alone, w, None, threshold)
        assert y.isnan().all() if place not in dropped else (y == 0).all()


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@on(EVERY, "dtype", FLOATS)
def test_what_counts_as_a_zero(backend, dtype):
    """-0.0 is zero; NaN of either sign, infinities and the smallest denormal are not. One of each per tile."""
    info = torch.finfo(dtype)
    smallest = torch.tensor(1, dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]).view(dtype)
    nan = torch.tensor(torch.nan, dtype=dtype)
    present = [nan, nan.copysign(torch.tensor(-1.0, dtype=dtype)), smallest, -smallest, info.tiny, info.max]
    present += [torch.inf, -torch.inf]
    for ordered, position in ((True, 0), (False, 2), (True, 3), (True, 5)):
        x = torch.full((2, 3 * len(present) + 6), -0.0, dtype=dtype)
        for tile, value in enumerate(present):
            x[position // 3, 3 * tile + position % 3] = value
        offsets, indices = backend("detect", x, 2, 3, len(present) + 2, ordered)
        assert offsets.tolist() == [0, len(present)]
        assert sorted(indices[: len(present)].tolist()) == list(range(len(present)))


@on(EVERY, "dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_bit_of_an_integer_counts(backend, dtype):
    """The most negative integer too, which has the bits of -0.0."""
    bits = 8 * dtype.itemsize
    x = (torch.ones((), dtype=torch.int64) << torch.arange(bits)).to(dtype).view(1, -1)
    assert backend("detect", x, 1, 1, bits, True)[0].tolist() == [0, bits]
    assert backend("detect", x, 1, 3, bits, True)[0].tolist() == [0, -(-bits // 3)]

"""Occupied fractions: in closed form, exact, sampled, averaged."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.pattern import Pattern
from gossamer.planner.costs.occupancy import Window, expected_occupancy, occupied_fraction, sample
from gossamer.planner.tiles import axis_of, resolve
from gossamer.testing import strategies


def test_names_of_axes():
    assert resolve((1, 0), (5, 7)) == (1, 7) and resolve((0, 1), (5, 7)) == (5, 1)
    assert [axis_of(tile, (8, 8), "a") for tile in ((1, 0), (1, 4), (4, 1), (4, 4))] == ["m", "m", "k", "block"]
    assert [axis_of(tile, (8, 8), "b") for tile in ((1, 0), (0, 1), (4, 4))] == ["k", "n", "block"]


# Published simulations of independent granules (PIT's artifact): covered sparsity after covering with a tile.
@pytest.mark.parametrize("granule, sparsity, tile, left", [
    ((2, 1), 0.95, (32, 1), 0.4401), ((8, 1), 0.9, (32, 1), 0.6561), ((1, 1), 0.99, (32, 1), 0.7250),
    ((32, 1), 0.9, (32, 1), 0.9), ((32, 1), 0.9, (8, 1), 0.9), ((1, 1), 0.5, (1, 1), 0.5),
])  # fmt: skip
def test_closed_form(granule, sparsity, tile, left):
    assert 1.0 - expected_occupancy(1.0 - sparsity, granule, tile) == pytest.approx(left, abs=1e-4)


@pytest.mark.parametrize("granule, tile", [((2, 1), (32, 1)), ((3, 2), (4, 5)), ((8, 8), (3, 3)), ((1, 1), (1, 16))])
def test_closed_form_is_the_mean_of_drawn_masks(granule, tile):
    rows, cols, density = 360, 360, 0.05
    fractions = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(rows // granule[0], cols // granule[1], generator=generator) < density
        mask = drawn.repeat_interleave(granule[0], 0).repeat_interleave(granule[1], 1)
        fractions.append(occupied_fraction(mask[: rows // tile[0] * tile[0], : cols // tile[1] * tile[1]], tile))
    mean = sum(fractions) / len(fractions)
    spread = torch.tensor(fractions).std().item() / len(fractions) ** 0.5
    assert abs(mean - expected_occupancy(density, granule, tile)) < 5 * spread + 1e-3


def _loop(mask: torch.Tensor, tile: tuple[int, int]) -> float:
    bm, bn = resolve(tile, (mask.shape[0], mask.shape[1]))
    places = [(i, j) for i in range(0, mask.shape[0], bm) for j in range(0, mask.shape[1], bn)]
    return sum(bool(mask[i : i + bm, j : j + bn].any()) for i, j in places) / max(len(places), 1)


TILES = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(strategies.cases(), st.integers(0, 99), TILES)
def test_covered_is_the_count(case, seed, tile):
    x = case.dense(seed=seed)
    want = _loop(x != 0, tile)
    assert occupied_fraction(x, tile) == pytest.approx(want, abs=1e-6)
    assert occupied_fraction(x != 0, tile) == pytest.approx(want, abs=1e-6)
    pattern = Pattern.from_mask(x != 0, case.tile)
    assert occupied_fraction(pattern, tile) == pytest.approx(_loop(pattern.to_mask(), tile), abs=1e-6)
    twice = (2 * case.tile[0], 3 * case.tile[1])
    assert occupied_fraction(pattern, twice) == pytest.approx(_loop(pattern.to_mask(), twice), abs=1e-6)


@given(strategies.cases(70, 150), st.integers(0, 99), st.lists(TILES, min_size=1, max_size=3), st.booleans())
def test_a_sample_of_everything_is_exact(case, seed, tiles, transposed):
    x = case.dense(seed=seed)
    if transposed:
        x = x.t().contiguous().t()
    got = sample(x, tiles, rows=10**6)
    assert got == pytest.approx([_loop(x != 0, tile) for tile in tiles], abs=1e-6)


@pytest.mark.parametrize("bn", [1, 8, 16, 32, 64, 48, 128, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
def test_sampled_words_of_every_width(bn, dtype):
    torch.manual_seed(bn)
    x = (torch.rand(64, 200) < 0.02).to(dtype)
    for bm in (1, 8, 32, 64):
        assert sample(x, [(bm, bn)], rows=64)[0] == pytest.approx(_loop(x != 0, (bm, bn)), abs=1e-6)


def test_negative_zero_is_zero_and_nan_is_not():
    x = torch.full((32, 64), -0.0)
    assert sample(x, [(1, 1)]) == (0.0,)
    x[3, 5] = float("nan")
    assert sample(x, [(1, 1), (32, 1), (1, 0)]) == (1 / 2048, 1 / 64, 1 / 32)


def test_turns_read_other_bands_and_their_mean_is_the_truth():
    x = torch.zeros(4096, 64)
    x[:1000] = 1.0  # a prefix, as padded batches have
    tiles = [(1, 0), (32, 1)]
    turns = [sample(x, tiles, rows=256, turn=turn) for turn in range(32)]
    assert len(set(turns)) > 1
    for place, tile in enumerate(tiles):
        fractions = [fraction[place] for fraction in turns]
        assert sum(fractions) / 32 == pytest.approx(occupied_fraction(x, tile), abs=0.02)
        assert max(abs(fraction - occupied_fraction(x, tile)) for fraction in fractions) <= 1 / 8 + 1e-6


def test_window_is_the_mean_of_the_last():
    window = Window(3)
    for value in (0.0, 1.0, 0.5, 0.75):
        mean = window.add((value, 0.0))
    assert mean == (0.75, 0.0)
    with pytest.raises(ValueError, match="expected 2 fractions, one for each tile, got 1"):
        window.add((1.0,))


@pytest.mark.parametrize("call, said", [
    (lambda: expected_occupancy(1.5, (1, 1), (1, 1)), "density must lie in [0, 1], got 1.5"),
    (lambda: expected_occupancy(0.5, (0, 1), (1, 1)), "granule must be a pair of ints of at least 1, got (0, 1)"),
    (lambda: resolve((-1, 2), (4, 4)), "tile must be a pair of ints of at least 0, got (-1, 2)"),
    (lambda: occupied_fraction(torch.zeros(3), (1, 1)), "x must have 2 dimensions"),
    (lambda: Window(0), "length must be at least 1, got 0"),
])  # fmt: skip
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_flags_are_one_bit_an_element():
    from gossamer.kernels.cpu.flags import flags

    torch.manual_seed(4)
    x = torch.where(torch.rand(40, 100) < 0.3, torch.randn(40, 100), torch.tensor(-0.0))
    bits = flags(x, [3, 20], 5)
    assert bits.shape == (2, 5, 2)
    for band, start in enumerate((3, 20)):
        for row in range(5):
            words = [int(word) & (2**64 - 1) for word in bits[band, row]]
            got = [bool(words[c // 64] >> (c % 64) & 1) for c in range(100)]
            assert got == (x[start + row] != 0).tolist()
    for starts, height in (([-1], 5), ([36], 5), ([0], 0)):
        with pytest.raises(ValueError, match="starts must name bands"):
            flags(x, starts, height)

"""Law: every instruction set computes what the reference computes, bit for bit, on any number of threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import _native
from gossamer.kernels import cpu, reference
from gossamer.testing import assert_same_bits
from gossamer.testing.cases import CASES

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip
FLOATS = DTYPES[:4]
# Around the block of 64 lanes, the word of 64 tiles, the sweep of 4 or 8 rows, and tiles that divide 64 or do not.
TILES = [(1, 1), (1, 2), (1, 4), (2, 8), (16, 16), (32, 1), (1, 32), (64, 64), (3, 5), (9, 65), (5, 100), (70, 128)]
SHAPES = [(1, 1), (7, 63), (8, 64), (9, 65), (33, 130), (65, 1030)]


def random(rows, cols, dtype, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, (rows, cols), generator=generator)
    return torch.where(torch.rand(rows, cols, generator=generator) < density, values, 0).to(dtype)


def agree(x, bm, bn, capacity):
    offsets, indices = cpu.detect(x, bm, bn, capacity, True)
    for ours, theirs in zip((offsets, indices), reference.detect(x, bm, bn, capacity, True), strict=True):
        assert_same_bits(ours, theirs)
    values = cpu.gather(x, offsets, indices, bm, bn)
    assert_same_bits(values, reference.gather(x, offsets, indices, bm, bn))
    dense = cpu.scatter(values, offsets, indices, *x.shape)
    assert_same_bits(dense, reference.scatter(values, offsets, indices, *x.shape))
    return offsets, dense


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table(isa, case):
    agree(case.dense(), *case.tile, case.mask().numel())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", [(1, 1), (4, 16), (32, 1), (3, 7)], ids=str)
def test_dtypes(isa, dtype, tile):
    x = random(45, 333, dtype, 0.05)
    _, dense = agree(x, *tile, 45 * 333)
    assert_same_bits(dense, x)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_densities(isa, shape, tile):
    for density in (0.0, 0.02, 0.5, 1.0):
        x = random(*shape, torch.float32, density)
        grid = reference.detect(torch.ones(shape), *tile, 0, True)[0][-1]
        offsets, dense = agree(x, *tile, int(grid))
        assert_same_bits(dense, x)
        assert density < 1 or offsets[-1] == grid


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_empty(isa, shape):
    for capacity in (0, 3):
        agree(torch.zeros(shape), 2, 3, capacity)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_counts_as_zero(isa, dtype):
    """-0.0 is zero; NaN of either sign, infinities and the smallest denormal are not. One of each per tile."""
    info = torch.finfo(dtype)
    denormal = torch.tensor(1, dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]).view(dtype)
    nan = torch.tensor(float("nan"), dtype=dtype)
    present = [nan, nan.copysign(torch.tensor(-1.0, dtype=dtype)), info.tiny, denormal, -denormal, info.max]
    present += [float("inf"), -float("inf")]
    for position in range(6):
        x = torch.full((2, 3 * len(present)), -0.0, dtype=dtype)
        for tile, value in enumerate(present):
            x[position // 3, 3 * tile + position % 3] = value
        assert cpu.detect(x, 2, 3, 0, True)[0].tolist() == [0, len(present)]
    offsets, indices = cpu.detect(torch.full((70, 200), -0.0, dtype=dtype), 3, 5, 4, True)
    assert not offsets.any() and not indices.any()


def test_sign_bit_of_integers_counts(isa):
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        x = torch.zeros(1, 70, dtype=dtype)
        x[0, 69] = torch.iinfo(dtype).min
        assert cpu.detect(x, 1, 1, 1, True)[1].tolist() == [69]


@pytest.mark.parametrize("capacity", [0, 1, 7, 63, 64, 65, 400])
def test_overflow_keeps_true_counts_and_the_first_tiles(isa, capacity):
    x = random(20, 200, torch.float32, 0.3)
    offsets, _ = agree(x, 1, 1, capacity)
    assert offsets[-1] == x.count_nonzero() > capacity


def test_wide_matrices_use_int32(isa):
    x = torch.zeros(2, 65537)
    x[1, 65536] = x[0, 3] = 1
    indices = cpu.detect(x, 1, 1, 3, True)[1]
    assert indices.dtype == torch.int32 and indices.tolist() == [3, 65536, 0]
    assert cpu.detect(x[:, :65536].contiguous(), 1, 1, 3, True)[1].dtype == torch.uint16
    agree(random(2, 65600, torch.float32, 0.9), 1, 1, 2 * 65600)


@pytest.mark.parametrize("shape", [(4096, 64), (16, 40000), (700, 900)], ids=str)
@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (32, 1), (3, 5)], ids=str)
def test_threads(isa, shape, tile):
    x = random(*shape, torch.float32, 0.1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        offsets, indices = cpu.detect(x, *tile, 200_000, True)
        values = cpu.gather(x, offsets, indices, *tile)
        results.append((offsets, indices, values, cpu.scatter(values, offsets, indices, *shape), cpu.read(x)))
    for other in results[1:]:
        for one, two in zip(results[0][:4], other[:4], strict=True):
            assert_same_bits(one, two)
        assert other[4] == results[0][4]


@pytest.mark.parametrize("tile", [(1, 8), (4, 2), (16, 8), (3, 70)], ids=str)
def test_unordered_rows(isa, tile):
    """Any order inside a row: the ragged last tile in the middle of others, rows without tiles, and slack."""
    x = random(50, 333, torch.float32, 1.0)
    x[tile[0] : 2 * tile[0]] = 0
    offsets, indices = cpu.detect(x, *tile, 50 * 333, True)
    for row in range(len(offsets) - 1):
        mine = slice(int(offsets[row]), int(offsets[row + 1]))
        if row % 3 == 0:  # leave tile 0 out, where what spills over the edge of the row above would land
            offsets[row + 1 :] -= int(mine.start < mine.stop)
            indices = torch.cat([indices[: mine.start], indices[mine.start + 1 :]])
            mine = slice(mine.start, int(offsets[row + 1]))
        indices[mine] = indices[mine].int().flip(0).to(torch.uint16)
    values = cpu.gather(x, offsets, indices, *tile)
    assert_same_bits(values, reference.gather(x, offsets, indices, *tile))
    values = random(len(indices), tile[0] * tile[1], torch.float32, 1.0).view(values.shape)  # padding is not zero here
    assert_same_bits(
        cpu.scatter(values, offsets, indices, 50, 333), reference.scatter(values, offsets, indices, 50, 333)
    )


@pytest.mark.parametrize("bytes_", [0, 1, 7, 8, 1023, 1024, 1031, 300_001])
def test_read_sums_words(isa, bytes_):
    x = np.random.default_rng(0).integers(0, 256, bytes_, dtype=np.uint8)
    words = bytes_ // 8 * 8
    total = int(x[:words].view(np.uint64).sum(dtype=np.uint64)) + int(x[words:].sum())
    assert cpu.read(torch.from_numpy(x)) == total % 2**64


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40), cols=st.integers(0, 300), bm=st.integers(1, 40), bn=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.01, 0.3, 1.0]), room=st.floats(0, 1.2), dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(_native.available_isas()), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_tile_and_capacity(rows, cols, bm, bn, density, room, dtype, name, seed):
    before = _native.isa()
    _native.set_isa(name)
    try:
        x = random(rows, cols, dtype, density, seed)
        agree(x, bm, bn, int(room * int(reference.detect(x, bm, bn, 0, True)[0][-1])))
    finally:
        _native.set_isa(before)


@pytest.mark.slow
def test_more_than_2_to_the_31_elements(isa):
    """Offsets are 64-bit before every multiply: a tile that starts past 2^31 elements (2 GiB of untouched zeros)."""
    cols = 2**31 + 70
    x = torch.zeros(1, cols, dtype=torch.int8)
    x[0, 5] = x[0, cols - 1] = 1
    bn = 2**20
    offsets, indices = cpu.detect(x, 1, bn, 2, True)
    assert indices.tolist() == [0, 2048] and offsets.tolist() == [0, 2]
    values = cpu.gather(x, offsets, indices, 1, bn)
    assert values[0].nonzero().tolist() == [[0, 5]] and values[1].nonzero().tolist() == [[0, 69]]
    assert torch.equal(cpu.scatter(values, offsets, indices, 1, cols), x)


def test_slack_of_kept_memory_is_zero(isa):
    """Room of many pages is not cleared by the kernel; it comes again with what its last user left."""
    x = torch.zeros(4096, 4096, dtype=torch.int8)
    for present in ((7,), (), (5, 2**21, 2**23 + 77, 2**24 - 1)):
        x.zero_().view(-1)[list(present)] = 1
        offsets, indices = cpu.detect(x, 1, 1, x.numel(), True)
        assert offsets[-1] == len(present) and indices[: len(present)].tolist() == [i % 4096 for i in present]
        assert indices.numel() == x.numel() and not indices[len(present) :].view(torch.int16).any()
        indices.fill_(9)
        del indices


@pytest.mark.parametrize("cols", [1000, 70_000], ids=["uint16", "int32"])
def test_many_indices(isa, cols):
    """Enough to be written past the caches: rows of them begin anywhere in a line, and end where the room does."""
    rows = 5 * 2**20 // cols
    x = random(rows, cols, torch.int8, 0.9)
    x[1], x[3, ::7] = 0, 0
    present = int(x.count_nonzero())
    for capacity in (x.numel(), present, present - 12_345):
        for ours, theirs in zip(
            cpu.detect(x, 1, 1, capacity, True), reference.detect(x, 1, 1, capacity, True), strict=True
        ):
            assert_same_bits(ours, theirs)

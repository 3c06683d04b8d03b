"""Law: the Triton kernels do what the reference does. Here they run in Triton's interpreter, on CPU tensors.

Triton reads TRITON_INTERPRET when a kernel is defined, so a process is either interpreted or not. Without the
variable, this file runs itself, `test_triton_products_interpreted.py` and `test_triton_skip_mv_interpreted.py` in a
child process that has it.
"""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch

from gossamer.kernels import reference
from gossamer.testing import CASES, assert_same_bits, case, ids

pytest.importorskip("triton", reason="triton is not installed: pip install gossamer[triton]")
FILES = [__file__, *(__file__.replace("test_triton_", f"test_triton_{part}_") for part in ("products", "skip_mv"))]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the child process of test_under_the_interpreter")

# The interpreter takes milliseconds a program: cases of thousands of programs are left to the GPU.
TOYS = [c for c in CASES if c.grid[0] * c.grid[1] <= 3000]
toys = pytest.mark.parametrize("c", TOYS, ids=ids(TOYS))
# A float and an integer everywhere; the other kinds and sizes of number where tiles are ragged.
TYPED = [(c, dtype) for c in TOYS for dtype in (torch.float32, torch.int8)] + [
    (case(name), dtype)
    for name in ("ragged", "last corner, odd tile", "tall tiles")
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool)
]
typed = pytest.mark.parametrize(("c", "dtype"), TYPED, ids=[f"{c.name}-{dtype}" for c, dtype in TYPED])


@pytest.mark.skipif(INTERPRETED, reason="this is the child process")
def test_under_the_interpreter():
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed and int(passed[1]) > 2 * len(TYPED) + 200, child.stdout[-2000:]


def sets(offsets, indices, capacity):
    ends = offsets.clamp(max=capacity).tolist()
    listed = indices.tolist()
    return [sorted(listed[start:end]) for start, end in itertools.pairwise(ends)]


@interpreted
@typed
def test_detect_ordered(c, dtype):
    from gossamer.kernels import triton

    tiles = int(c.tiles().sum())
    for capacity in {c.grid[0] * c.grid[1] + 2, tiles, tiles // 2}:
        got, expected = (backend.detect(c.dense(dtype), *c.tile, capacity, True) for backend in (triton, reference))
        assert_same_bits(got[0], expected[0])
        assert_same_bits(got[1], expected[1])


@interpreted
@toys
def test_detect_unordered(c):
    from gossamer.kernels import triton

    tiles = int(c.tiles().sum())
    for capacity in {c.grid[0] * c.grid[1] + 2, tiles}:
        got, expected = (backend.detect(c.dense(), *c.tile, capacity, False) for backend in (triton, reference))
        assert_same_bits(got[0], expected[0])
        assert got[1].dtype == expected[1].dtype and (got[1][tiles:] == 0).all()
        assert sets(*got, capacity) == sets(*expected, capacity)
    offsets, indices = triton.detect(c.dense(), *c.tile, tiles // 2, False)
    assert_same_bits(offsets, expected[0])
    assert indices.shape == (tiles // 2,)


@interpreted
@typed
def test_gather_and_scatter(c, dtype):
    from gossamer.kernels import triton

    x = c.dense(dtype)
    tiles = int(c.tiles().sum())
    offsets, indices = reference.detect(x, *c.tile, tiles + 3, True)
    indices[tiles:] = torch.iinfo(indices.dtype).max  # slack must never be used as an address
    values = triton.gather(x, offsets, indices, *c.tile)
    assert_same_bits(values, reference.gather(x, offsets, indices, *c.tile))
    if dtype.is_floating_point:
        values[tiles:] = torch.nan
    assert_same_bits(triton.scatter(values, offsets, indices, *c.shape), x)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_minus_zero_is_absent_and_nan_inf_and_subnormals_are_present(dtype, ordered):
    from gossamer.kernels import triton

    info = torch.finfo(dtype)
    values = [0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, info.smallest_normal * info.eps, -0.0]
    offsets, indices = triton.detect(torch.tensor([values], dtype=dtype), 1, 1, 8, ordered)
    assert offsets.tolist() == [0, 5] and sorted(indices.tolist()) == [0, 0, 0, 2, 3, 4, 5, 6]


@interpreted
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_every_bit_of_an_integer_counts(dtype):
    from gossamer.kernels import triton

    x = (torch.ones((), dtype=torch.int64) << torch.arange(8 * dtype.itemsize)).to(dtype).view(1, -1)
    assert triton.detect(x, 1, 1, x.numel(), True)[0].tolist() == [0, x.numel()]


@interpreted
def test_a_row_of_several_programs_and_shuffled_columns():
    from gossamer.kernels import triton

    c = case("one row")
    x = c.dense()
    offsets, indices = triton.detect(x, 1, 1, 3000, False)
    tiles = int(offsets[-1])
    indices[:tiles] = indices[:tiles][torch.randperm(tiles)]
    values = triton.gather(x, offsets, indices, 1, 1)
    assert_same_bits(values, reference.gather(x, offsets, indices, 1, 1))
    assert_same_bits(triton.scatter(values, offsets, indices, *c.shape), x)


@interpreted
def test_both_index_types_at_the_edge():
    from gossamer.kernels import triton

    for name, dtype in (("last column of uint16", torch.uint16), ("first width of int32", torch.int32)):
        c = case(name)
        x = c.dense()
        x[1, -1] = 7.0
        got, expected = (backend.detect(x, 1, 1, 400, True) for backend in (triton, reference))
        assert got[1].dtype == dtype
        assert_same_bits(got[0], expected[0])
        assert_same_bits(got[1], expected[1])
        values = triton.gather(x, *got, 1, 1)
        assert_same_bits(triton.scatter(values, *got, *c.shape), x)

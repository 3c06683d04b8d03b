"""Law: results do not depend on the run, nor on the number of threads."""

import pytest
import torch

import gossamer as gs
from gossamer.testing import assert_same_bits

SHAPE = (700, 900)  # enough for every thread to get work, and not a multiple of anything


def matrix(dtype):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(SHAPE, generator=generator) < 0.02
    return torch.where(keep, torch.randint(1, 100, SHAPE, generator=generator), 0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("tile", [(1, 1), (1, 16), (16, 1), (8, 8), (7, 13)], ids=str)
def test_threads_and_runs(tile, dtype):
    x = matrix(dtype)
    results = []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        p = gs.detect(x, tile)
        values = gs.ops.gather(x, p)
        results.append((p.offsets, p.indices, values, gs.ops.scatter(values, p)))
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert_same_bits(one, other)
    assert_same_bits(results[0][3], x)


def test_deterministic_mode_changes_nothing():
    x = matrix(torch.float32)
    expected = gs.Pattern.from_dense(x, (8, 8))
    torch.use_deterministic_algorithms(True)
    try:
        for p in (gs.Pattern.from_dense(x, (8, 8)), gs.detect(x, (8, 8)), gs.detect(x, (8, 8), backend="reference")):
            assert p.equals(expected)
            assert_same_bits(gs.ops.scatter(gs.ops.gather(x, p), p), x)
            assert_same_bits(p.unpack(p.pack(x)), x)
    finally:
        torch.use_deterministic_algorithms(False)

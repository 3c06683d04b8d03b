"""Law: the Triton skip_mv and gated_mv do what the reference does, bit for bit on integers; in Triton's interpreter.

Run by `test_triton_interpreted.py`, which sets TRITON_INTERPRET=1 for a child process. Rows of weights that nobody
needs are NaN.
"""

import os

import pytest
import torch

from gossamer.kernels import reference
from gossamer.testing import assert_same_bits, assert_within, gamma

pytest.importorskip("triton", reason="triton is not installed: pip install gossamer[triton]")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in the child process of test_under_the_interpreter"
)

# (rows of x, C, K): lists of one, two and eight rows, a ragged one of eight; segments of 512; blocks of 128 and of 64.
SHAPES = [(2, 600, 100), (1, 37, 530), (3, 1030, 20), (8, 512, 65), (11, 64, 70), (1, 1, 1), (2, 0, 5), (0, 5, 5)]
TYPED = [(shape, torch.float32, True) for shape in SHAPES] + [
    (SHAPES[0], dtype, False) for dtype in (torch.bfloat16, torch.float16, torch.float64)
]
typed = pytest.mark.parametrize(("shape", "dtype", "with_bias"), TYPED, ids=str)


def sparse(*shape, dtype, density=0.3):
    """Sums of products of these are exact in every dtype: they stay below 256."""
    return (torch.randint(-1, 2, shape) * (torch.rand(shape) < density)).to(dtype)


@typed
def test_skip_mv(shape, dtype, with_bias):
    from gossamer.kernels import triton

    rows, c, k = shape
    x, bias = 2 * sparse(rows, c, dtype=dtype), sparse(k, dtype=dtype) if with_bias else None
    x += sparse(rows, c, dtype=dtype, density=0.5) * (x == 0)  # 1 is dropped, 2 is not
    for threshold in (0.0, 1.0):
        w = sparse(c, k, dtype=dtype, density=1.0)
        w[~(x.abs() > threshold).any(0)] = torch.nan
        y, counts = triton.skip_mv(x, w, bias, threshold)
        expected, expected_counts = reference.skip_mv(x, w, bias, threshold)
        assert_same_bits(y + 0, expected + 0)
        assert_same_bits(counts, expected_counts)


@typed
def test_gated_mv(shape, dtype, with_bias):
    from gossamer.kernels import triton

    rows, c, k = shape
    x, gate, w = (sparse(*size, dtype=dtype) for size in ((rows, c), (rows, k), (k, c)))
    w[(gate == 0).all(0)] = torch.nan
    bias = sparse(k, dtype=dtype) if with_bias else None
    assert_same_bits(triton.gated_mv(x, w, bias, gate) + 0, reference.gated_mv(x, w, bias, gate) + 0)


def test_what_is_dropped():
    from gossamer.kernels import triton

    x = torch.tensor([[-0.0, 0.5, -0.5, 0.6, torch.nan, torch.inf], [1.0, 0, 0, 0, 0, 0]])
    for threshold in (0.0, 0.5, torch.inf):
        for place in range(6):
            w = torch.zeros(6, 3)
            w[place] = torch.inf
            x_alone = torch.where(torch.arange(6) == place, x, 0)
            y, counts = triton.skip_mv(x_alone, w, None, threshold)
            expected, expected_counts = reference.skip_mv(x_alone, w, None, threshold)
            assert torch.equal(y.nan_to_num(), expected.nan_to_num()) and torch.equal(y.isnan(), expected.isnan())
            assert_same_bits(counts, expected_counts)


def test_a_row_used_by_one_does_not_reach_another():
    from gossamer.kernels import triton

    x, w = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[torch.inf] * 20, [3.0] * 20])
    y, _ = triton.skip_mv(x, w, None, 0.0)
    assert (y[0] == torch.inf).all() and (y[1] == 6).all()
    y = triton.gated_mv(torch.ones(2, 20), w, None, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    assert y.tolist() == [[0, 60], [torch.inf, 0]]


def test_short_weights_beside_float32_and_real_numbers():
    from gossamer.kernels import triton

    x, w, gate = torch.randn(2, 900).relu(), torch.randn(900, 70).bfloat16(), torch.randn(2, 70).relu()
    exact, size = x.double() @ w.double(), x.double().abs() @ w.double().abs()
    assert_within(triton.skip_mv(x, w, None, 0.0)[0], exact, gamma(900, torch.float32) * size)
    bound = gamma(901, torch.float32) * size * gate.double()
    assert_within(triton.gated_mv(x, w.t().contiguous(), None, gate), gate.double() * exact, bound)

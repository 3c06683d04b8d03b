"""Law: deterministic mode changes nothing, new patterns in old memory are followed, images do not see their batch."""

import pytest
import torch

import gossamer as gs
from gossamer.testing import assert_same_bits, convolution, product


def results(c):
    p, s = c.pattern(), c.sparse()
    rows, k = c.case.shape
    values, a, b = c.values(p, s), c.dense(c.n, rows), c.dense(k, c.n)
    t = gs.ops.transpose(p)
    index = gs.Pattern(p.offsets, p.indices[: p.nnz], p.shape, p.tile)
    return (
        gs.ops.dsd(values, p, b),
        gs.ops.dds(a, values, p),
        gs.ops.sdd(a.t(), b.t(), p),
        t.pattern.indices,
        t.order,
        gs.ops.matmul(s, b, index=index),
    )


def test_a_hundred_patterns_in_the_same_memory():
    """One capacity, one set of buffers: whatever pattern arrives, the answer is right and no index is allocated."""
    c = product("8 x 8")
    p = gs.Pattern.full(c.case.shape, c.case.tile)
    values = torch.empty(p.capacity, *p.tile)
    b = c.dense(c.case.cols, c.n, integers=True)
    addresses = p.offsets.data_ptr(), p.indices.data_ptr(), values.data_ptr()
    for seed in range(100):
        s = c.sparse(integers=True, seed=seed)
        p.copy_(c.pattern(seed))
        values.copy_(p.pack(s))
        assert torch.equal(gs.ops.dsd(values, p, b), s @ b)
    assert addresses == (p.offsets.data_ptr(), p.indices.data_ptr(), values.data_ptr())


def test_deterministic_mode_changes_no_product():
    c = product("power law")
    expected = results(c)
    torch.use_deterministic_algorithms(True)
    try:
        for one, two in zip(expected, results(c), strict=True):
            assert_same_bits(one, two)
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_mode_changes_no_index():
    x = torch.randn(700, 900).where(torch.rand(700, 900) < 0.02, 0)
    expected = gs.Pattern.from_dense(x, (8, 8))
    torch.use_deterministic_algorithms(True)
    try:
        for p in (gs.Pattern.from_dense(x, (8, 8)), gs.detect(x, (8, 8)), gs.detect(x, (8, 8), backend="reference")):
            assert p.equals(expected)
            assert_same_bits(gs.ops.scatter(gs.ops.gather(x, p), p), x)
            assert_same_bits(p.unpack(p.pack(x)), x)
    finally:
        torch.use_deterministic_algorithms(False)


NAMES = ["3x3", "3x3, stride 2, odd", "1x1", "5x5", "3x3, 7 x 7, many images", "odd channels"]


@pytest.mark.parametrize("name", NAMES)
def test_the_passes_of_a_convolution_in_every_team(name):
    case = convolution(name)
    x, weight, bias = (t.requires_grad_() for t in case.operands("half"))
    dy, found = case.gradient("relu"), []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        y = gs.ops.conv2d(
            x, weight, bias, case.stride, case.padding, case.dilation, skip="input", relu=True, backend="cpu"
        )
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        found.append((y.detach(), dx, dw))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_same_bits(one, two)


def test_an_image_does_not_depend_on_its_batch():
    """Forward and the input gradient: each element is a sum in one order, wherever the image lies."""
    case = convolution("3x3, 7 x 7, many images")
    x, weight, bias = case.operands("half")
    whole = gs.ops.conv2d(x, weight, bias, padding=1, skip="input")
    for i in (0, 5, 16):
        alone = gs.ops.conv2d(x[i : i + 1], weight, bias, padding=1, skip="input")
        assert_same_bits(alone, whole[i : i + 1])

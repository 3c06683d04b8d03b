"""Law: the gradient by weights is that of a dense convolution of what counts, and what is zero in the skipped operand
meets nothing."""

import itertools
import random

import pytest
import torch
from by_name import cpu, reference

from gossamer.testing import assert_same_bits

EPS = 2.0**-24 * 2  # the spacing of float32 at 1
SIDES = ["x", "dy"]


def out_size(size, taps, stride, padding, dilation):
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def operands(n, h, w, c, k, geometry, density=0.5):
    kernel, stride, padding, dilation = geometry
    oh, ow = (out_size(*of) for of in zip((h, w), kernel, stride, padding, dilation, strict=True))
    x, dy = torch.randn(n, h, w, c), torch.randn(n, oh, ow, k)
    return x * (torch.rand(x.shape) < density), dy * (torch.rand(dy.shape) < density)


def random_bits(dy):
    return torch.randint(-(2**31), 2**31 - 1, (*dy.shape[:3], -(-dy.shape[3] // 32)), dtype=torch.int32)


def assert_close(x, dy, bits, geometry, skip):
    """Within 8 spacings of the sum of magnitudes of the oracle in float64, and the counts are exact."""
    dw, counts = cpu.skip_conv_weight(x, dy, bits, *geometry, skip)
    oracle, expected = reference.skip_conv_weight(x.double(), dy.double(), bits, *geometry, skip)
    last = cpu.skip_conv_weight(x, dy, bits, *geometry, skip, channels_last=True)[0]
    assert last.permute(0, 2, 3, 1).is_contiguous()
    assert_same_bits(last.contiguous(), dw)
    size, _ = reference.skip_conv_weight(x.double().abs(), dy.double().abs(), bits, *geometry, skip)
    assert dw.shape == oracle.shape and dw.is_contiguous()
    assert ((dw - oracle).abs() <= 8 * EPS * size).all()
    assert counts.tolist() == expected.tolist()


def grid(count):
    """Geometries of every kind, drawn without a favourite; each comes with both sides."""
    draw = random.Random(0)
    found = []
    while len(found) < count:
        kernel = draw.choice(((1, 1), (3, 3), (3, 3), (1, 3), (5, 5), (7, 7), (2, 4)))
        stride, dilation = (draw.choice(((1, 1), (2, 2), (1, 2), (3, 1))) for _ in range(2))
        padding = tuple(draw.randint(0, taps - 1) for taps in kernel)
        size = draw.choice(((1, 1), (5, 5), (7, 7), (14, 14), (33, 14), (1, 33), (4, 300)))
        n, c, k = draw.choice((1, 2, 16, 17)), draw.choice((1, 8, 24, 32, 40, 96)), draw.choice((1, 8, 24, 32, 40, 96))
        out = [out_size(*of) for of in zip(size, kernel, stride, padding, dilation, strict=True)]
        if min(out) < 1 or n * out[0] * out[1] * kernel[0] * kernel[1] * c * k > 2e7:
            continue
        found.append((n, *size, c, k, (kernel, stride, padding, dilation)))
    return found


@pytest.mark.parametrize("tenth", range(10))
def test_error_is_within_the_bound(isa, tenth):
    for i, case in enumerate(grid(60)[tenth::10]):
        x, dy = operands(*case)
        for skip in SIDES:
            assert_close(x, dy, random_bits(dy) if (i + tenth) % 2 else None, case[-1], skip)


SAME = ((3, 3), (1, 1), (1, 1), (1, 1))
STRIDED = ((3, 3), (2, 2), (1, 1), (1, 1))
POINT = ((1, 1), (1, 1), (0, 0), (1, 1))
GEOMETRIES = [SAME, STRIDED, POINT]


def pattern(x, name):
    y = torch.zeros_like(x)
    if name == "one nonzero":
        y.view(-1)[x.numel() // 2] = 3
    elif name == "dense":
        y = x + 10
    elif name == "alternating":
        y.view(-1)[::2] = x.view(-1)[::2]
    elif name == "one channel":
        y[..., 5] = x[..., 5]
    elif name == "negative zeros":
        y = torch.where(torch.rand(x.shape) < 0.5, -0.0, x)
    elif name == "denormals":
        y = x.sign() * 1e-41
    return y


PATTERNS = ["zeros", "one nonzero", "dense", "alternating", "one channel", "negative zeros", "denormals"]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_gradient_lies_as_the_reference_lays_it(geometry):
    x, dy = operands(2, 15, 9, 24, 40, geometry)
    for last in (False, True):
        found = [of.skip_conv_weight(x, dy, None, *geometry, "x", channels_last=last)[0] for of in (cpu, reference)]
        assert found[0].stride() == found[1].stride()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patterns_of_zeros(isa, geometry):
    x, dy = operands(2, 15, 9, 24, 40, geometry, density=1)
    for name, skip in itertools.product(PATTERNS, SIDES):
        sparse = (pattern(x, name), dy) if skip == "x" else (x, pattern(dy, name))
        if name == "denormals":  # far below the spacing of their sums: whole numbers keep the products exact
            sparse = tuple(torch.where(of.abs() < 1e-30, of, of.round()) for of in sparse)
        assert_close(*sparse, None, geometry, skip)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("skip", SIDES)
def test_zeros_never_meet_what_is_not_finite(isa, geometry, skip):
    """Also -0.0, what has no bit, and the border: all-finite results, equal to those with the bad values replaced."""
    x, dy = operands(2, 9, 9, 24, 40, geometry, density=0)
    for of in (x, dy):
        of[0] = torch.randn(of.shape[1:])
    sparse, other = (x, dy) if skip == "x" else (dy, x)
    expected = cpu.skip_conv_weight(x, dy, None, *geometry, skip)
    sparse[1] = -0.0
    other[1] = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0])[torch.randint(4, other[1].shape)]
    got = cpu.skip_conv_weight(x, dy, None, *geometry, skip)
    assert_same_bits(got[0], expected[0])
    assert got[1].tolist() == expected[1].tolist()
    bits = torch.full((*dy.shape[:3], 2), -1, dtype=torch.int32)
    bits[1] = 0
    x, dy = x.nan_to_num(posinf=7, neginf=5), torch.where(bits[..., :1] == 0, float("nan"), dy)
    assert_same_bits(cpu.skip_conv_weight(x, dy, bits, *geometry, skip)[0], expected[0])


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_exactly_its_products(isa, geometry, bad):
    """Beside the border it meets fewer taps: the zeros that pad a convolution are no numbers to multiply."""
    for corner, skip, where in itertools.product((0, -1, 4), SIDES, SIDES):
        x, dy = operands(2, 9, 9, 24, 40, geometry)
        (x if where == "x" else dy)[1, corner, corner, 7] = bad
        dw, counts = cpu.skip_conv_weight(x, dy, None, *geometry, skip)
        oracle, expected = reference.skip_conv_weight(x.double(), dy.double(), None, *geometry, skip)
        size, _ = reference.skip_conv_weight(x.nan_to_num(0, 0).abs(), dy.nan_to_num(0, 0).abs(), None, *geometry, skip)
        assert torch.equal(dw.isnan(), oracle.isnan()) and torch.equal(dw.isinf(), oracle.isinf())
        finite = oracle.isfinite()
        assert ((dw - oracle).abs() <= 8 * EPS * size)[finite].all()
        assert counts.tolist() == expected.tolist()


CASES = [
    (3, 90, 90, 24, 40, SAME),  # a small gradient of many pixels: summed in stretches
    (1, 1, 20000, 65, 33, POINT),
    (3, 20, 20, 96, 130, SAME),
    (17, 7, 7, 40, 200, SAME),
    (2, 30, 30, 70, 70, STRIDED),
    (1, 1, 4000, 65, 190, POINT),
    (2, 14, 14, 33, 64, ((5, 5), (1, 1), (2, 2), (2, 2))),
]
SPARSE_POINTS = [  # one tap, many pixels and few nonzeros: pixel by pixel
    (1, 1, 20001, 17, 161, POINT),
    (3, 149, 240, 33, 20, ((1, 1), (2, 3), (0, 0), (1, 1))),
]


@pytest.mark.parametrize("case", SPARSE_POINTS, ids=str)
@pytest.mark.parametrize("skip", SIDES)
def test_one_tap_and_few_nonzeros(isa, case, skip):
    """Two pixels share the visits of a channel, yet what is zero in one of them meets nothing of the other."""
    x, dy = operands(*case, density=0.1)
    sparse, other = (x, dy) if skip == "x" else (dy, x)
    hit = torch.arange(sparse.shape[3]) % 3 == 1
    sparse[0, 0, 0] = hit
    assert_close(x, dy, None, case[-1], skip)
    assert_close(x, dy, random_bits(dy), case[-1], skip)
    expected = cpu.skip_conv_weight(x, dy, None, *case[-1], skip)[0]
    for value in (float("inf"), float("nan")):
        other[0, 0, 0] = value
        dw = cpu.skip_conv_weight(x, dy, None, *case[-1], skip)[0].movedim(1 if skip == "x" else 0, 0)
        assert not dw[hit].isfinite().any()
        assert_same_bits(dw[~hit], expected.movedim(1 if skip == "x" else 0, 0)[~hit])


@pytest.mark.parametrize("case", CASES + SPARSE_POINTS, ids=str)
@pytest.mark.parametrize("skip", SIDES)
def test_threads_change_no_bit(isa, case, skip):
    x, dy = operands(*case, density=0.1 if case in SPARSE_POINTS else 0.5)
    results = []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        results.append(cpu.skip_conv_weight(x, dy, None, *case[-1], skip))
    for dw, counts in results[1:]:
        assert_same_bits(dw, results[0][0])
        assert counts.tolist() == results[0][1].tolist()


@pytest.mark.parametrize("skip", SIDES)
def test_stretches_of_many_pixels(isa, skip):
    """Few channels, so many pixels that their sums are made in stretches; with what is not finite beside the border."""
    x, dy = operands(2, 96, 96, 9, 17, SAME)
    assert_close(x, dy, random_bits(dy), SAME, skip)
    expected = cpu.skip_conv_weight(x, dy, None, *SAME, skip)[0]
    for corner in (0, -1):
        bad = x.clone()
        bad[1, corner, corner, 7] = float("inf")
        dw = cpu.skip_conv_weight(bad, dy, None, *SAME, skip)[0]
        oracle = reference.skip_conv_weight(bad.double(), dy.double(), None, *SAME, skip)[0]
        assert torch.equal(dw.isnan(), oracle.isnan()) and torch.equal(dw.isinf(), oracle.isinf())
        same = oracle.isfinite()
        assert_same_bits(dw[same], expected[same])


@pytest.mark.parametrize("case", [(0, 5, 5, 8, 8, SAME), (2, 5, 5, 0, 8, SAME), (2, 5, 5, 8, 0, SAME)], ids=str)
@pytest.mark.parametrize("skip", SIDES)
def test_nothing_gives_zeros(isa, case, skip):
    x, dy = operands(*case, density=2)
    for last in (False, True):
        dw, counts = cpu.skip_conv_weight(x, dy, None, *SAME, skip, channels_last=last)
        oracle, expected = reference.skip_conv_weight(x, dy, None, *SAME, skip, channels_last=last)
        assert dw.shape == (case[4], case[3], 3, 3) and not dw.any()
        assert dw.stride() == oracle.stride()
        assert counts.tolist() == expected.tolist() == [0, 0, 0]


def test_elements_that_a_stride_steps_over_are_not_counted():
    x, dy = operands(1, 8, 7, 3, 5, ((1, 2), (2, 3), (0, 0), (1, 1)), density=2)
    _, counts = cpu.skip_conv_weight(x, dy, None, (1, 2), (2, 3), (0, 0), (1, 1), "x")
    assert counts.tolist() == [4 * 5 * 3, 4 * 4 * 3 * 5, 4 * 5 * 3]  # column 6 is reached, though by no place of dy


def test_wrong_arguments_are_named():
    x, dy = operands(2, 9, 9, 24, 40, SAME)
    with pytest.raises(ValueError, match=r"OH = 5 for H = 9, kernel \(3, 3\), stride \(2, 2\)"):
        cpu.skip_conv_weight(x, dy, None, *STRIDED, "x")
    with pytest.raises(ValueError, match="skip must be 'x' or 'dy', got 'y'"):
        cpu.skip_conv_weight(x, dy, None, *SAME, "y")
    with pytest.raises(ValueError, match="dy must have 2 images"):
        cpu.skip_conv_weight(x, dy[:1], None, *SAME, "x")
    with pytest.raises(ValueError, match=r"bits must have shape \(2, 9, 9, 2\), got \(2, 9, 9, 1\)"):
        cpu.skip_conv_weight(x, dy, torch.zeros(2, 9, 9, 1, dtype=torch.int32), *SAME, "x")
    with pytest.raises(ValueError, match=r"dilation must be two integers of at least 1, got \(0, 1\)"):
        cpu.skip_conv_weight(x, dy, None, (3, 3), (1, 1), (1, 1), (0, 1), "x")
    with pytest.raises(TypeError, match=r"x must have dtype torch.float32, got torch.float64"):
        cpu.skip_conv_weight(x.double(), dy, None, *SAME, "x")
    with pytest.raises(ValueError, match="dy must be contiguous"):
        cpu.skip_conv_weight(x, dy.permute(0, 2, 1, 3), None, *SAME, "x")

"""Law: convolutions and linears that skip zeros equal float64 within a bound that their operands imply."""

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, REFERENCE, on

import gossamer as gs
from gossamer.testing import CONVOLUTIONS, ZEROS, assert_within, convolution, gamma

BACKENDS = (REFERENCE, *CPU)
every = on(BACKENDS, "case", CONVOLUTIONS)


def double(*tensors):
    return [t.detach().double() for t in tensors]


def oracle(case, x, weight, bias, dy):
    """y, dx, dw, db by torch in float64, and by how much each may differ: rounding of as many terms, of any order."""
    x, weight, bias, dy = double(x, weight, bias, dy)

    def passes(x, weight, bias, dy):
        x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
        y = F.conv2d(x, weight, bias, case.stride, case.padding, case.dilation)
        return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)]

    bounds = passes(x.abs(), weight.abs(), bias.abs(), dy.abs())
    return passes(x, weight, bias, dy), [gamma(case.terms, torch.float32) * bound for bound in bounds]


def ours(case, x, weight, bias, dy, backend, **options):
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = gs.ops.conv2d(
        x, weight, bias, case.stride, case.padding, case.dilation, skip="input", backend=backend.kernels, **options
    )
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy)]


@every
def test_every_shape(backend, case):
    x, weight, bias = case.operands("half")
    dy = case.gradient("relu")
    wanted, bounds = oracle(case, x, weight, bias, dy)
    for actual, expected, bound in zip(ours(case, x, weight, bias, dy, backend), wanted, bounds, strict=True):
        assert_within(actual, expected, bound)


@on(BACKENDS)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("name", ["3x3", "3x3, stride 2, odd", "1x1", "odd channels", "5x5, dilated"])
def test_every_way_in_which_zeros_lie(name, zeros, backend):
    """Integers: every partial sum is exact, so one misplaced product shows."""
    case = convolution(name)
    x, weight, bias = case.operands(zeros, integers=True)
    for other in (zeros, "none"):
        dy = case.gradient(other, integers=True)
        wanted, _ = oracle(case, x, weight, bias, dy)
        for actual, expected in zip(ours(case, x, weight, bias, dy, backend), wanted, strict=True):
            assert torch.equal(actual.double(), expected)


@every
def test_relu_inside_equals_relu_outside(case, backend):
    """y where it is positive, and a gradient only there: one bit remembers each element."""
    x, weight, bias = case.operands("relu", integers=True)
    dy = case.gradient("none", integers=True)
    y = F.conv2d(*double(x, weight, bias), case.stride, case.padding, case.dilation)
    wanted, _ = oracle(case, x, weight, bias, dy * (y > 0))
    wanted[0] = y.relu()
    for actual, expected in zip(ours(case, x, weight, bias, dy, backend, relu=True), wanted, strict=True):
        assert torch.equal(actual.double(), expected)
    # Without a bias gradient nobody masks dy: the kernels read the bits themselves.
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    geometry = case.stride, case.padding, case.dilation
    y = gs.ops.conv2d(x, weight, bias, *geometry, skip="input", backend=backend.kernels, relu=True)
    for actual, expected in zip(torch.autograd.grad(y, (x, weight), dy), wanted[1:3], strict=True):
        assert torch.equal(actual.double(), expected)


@on(BACKENDS)
@pytest.mark.parametrize("by_input", [False, True], ids=["by output", "by input"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 70])
def test_linear(rows, relu, by_input, backend):
    """Few rows read a weight that is stored by input channel with a kernel of their own."""
    generator = torch.Generator().manual_seed(rows)
    x, dy = (torch.randint(-4, 5, (rows, n), generator=generator).float().relu() for n in (70, 45))
    weight, bias = (torch.randint(-3, 4, size, generator=generator).float() for size in ((45, 70), (45,)))
    weight = weight.t().contiguous().t() if by_input else weight
    outputs = []
    skipping = {"skip": "input", "backend": backend.kernels, "relu": relu}
    for function, options in ((gs.ops.linear, skipping), (F.linear, {})):
        one, two, three = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias))
        y = function(one, two, three, **options)
        y = y.relu() if relu and not options else y
        outputs.append([y.detach(), *torch.autograd.grad(y, (one, two, three), dy)])
    for actual, expected in zip(*outputs, strict=True):
        assert torch.equal(actual, expected)


@on(BACKENDS)
def test_linear_of_any_batch_and_layout(backend):
    weight = torch.randint(-3, 4, (24, 32)).float()
    rows = torch.randint(-3, 4, (6, 5, 32)).float().relu()
    for x in (
        rows[0, 0],
        rows[0],
        rows,
        rows[:, None],
        rows.transpose(0, 1),
        rows[:0],
        torch.cat([rows, rows], 2)[..., 32:],
    ):
        y = gs.ops.linear(x, weight, skip="input", backend=backend.kernels)
        assert torch.equal(y, F.linear(x, weight))


@on(BACKENDS)
def test_no_bias_and_other_dtypes(backend):
    case = convolution("3x3")
    x, weight, _ = case.operands(integers=True)
    options = {"padding": 1, "skip": "input", "backend": backend.kernels}
    assert torch.equal(gs.ops.conv2d(x, weight, **options), F.conv2d(x, weight, padding=1))
    if backend is REFERENCE:
        assert torch.equal(
            gs.ops.conv2d(x.double(), weight.double(), **options), F.conv2d(x.double(), weight.double(), padding=1)
        )

"""Law: a convolution over the nonzeros of its input is the dense one, meets nothing else, and counts what it did."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from by_name import cpu, reference

from gossamer.testing import assert_same_bits

EPS = torch.finfo(torch.float32).eps


def zeros_as(pattern, shape):
    """x[N, H, W, C] with the zeros of a kind."""
    c = shape[3]
    x = torch.randn(shape)
    if pattern == "none":
        return x
    if pattern == "all":
        return torch.zeros(shape)
    if pattern == "one":
        one = torch.zeros(shape)
        one.view(-1)[x.numel() // 2] = 3.0
        return one
    if pattern == "alternating":
        return x * (torch.arange(x.numel()).view(shape) % 2)
    if pattern == "channel":
        return x * (torch.arange(c) == c // 2)
    if pattern == "negative":
        return torch.where(torch.rand(shape) < 0.5, torch.tensor(-0.0), x)
    if pattern == "denormal":
        return torch.where(torch.rand(shape) < 0.5, torch.zeros(()), x * 1e-42)
    return torch.where(torch.rand(shape) < 0.5, torch.zeros(()), x)


PATTERNS = ["random", "none", "all", "one", "alternating", "channel", "negative", "denormal"]


def out_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def cases(count, seed):
    """(N, H, W, C, K, kernel, stride, padding, dilation) around every edge of the kernels, with an output."""
    draw = random.Random(seed)
    while count:
        c, k = (draw.choice((1, 8, 16, 24, 32, 40, 64, 96)) for _ in range(2))
        r, s = (
            (draw.choice((1, 3, 5, 7)) for _ in range(2)) if draw.random() < 0.5 else [draw.choice((1, 2, 3, 5, 7))] * 2
        )
        stride = draw.choice(((1, 1), (1, 1), (2, 2), (2, 1), (3, 3)))
        dilation = draw.choice(((1, 1), (1, 1), (2, 2), (1, 3), (3, 1)))
        padding = draw.randint(0, r), draw.randint(0, s)
        n, h, w = draw.choice((1, 2, 3)), draw.choice((1, 5, 7, 14)), draw.choice((1, 5, 7, 14, 33))
        sizes = [out_size(*a) for a in zip((h, w), (r, s), stride, padding, dilation, strict=True)]
        if min(sizes) >= 1 and n * h * w * c * k * r * s < 3e7:
            count -= 1
            yield (n, h, w, c), k, (r, s), stride, padding, dilation, tuple(sizes)


def dense(x, weight, case, transposed):
    """The convolution, or the gradient by the input, in the precision of x, channels last."""
    shape, _, _, stride, padding, dilation, _ = case
    if transposed:
        n, h, w, c = shape
        y = torch.nn.grad.conv2d_input((n, c, h, w), weight, x.permute(0, 3, 1, 2), stride, padding, dilation)
    else:
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, padding, dilation)
    return y.permute(0, 2, 3, 1)


def run(x, weight, case, transposed, kernels=cpu, bias=None, bits=None, relu=False):
    shape, k, kernel, stride, padding, dilation, size = case
    packed = kernels.skip_pack(weight.transpose(0, 1) if transposed else weight)
    out, size = (shape[3], shape[1:3]) if transposed else (k, size)
    return kernels.skip_conv(
        x, packed, bias, bits, out, kernel, stride, padding, dilation, transposed, tuple(size), relu
    )


def operands(case, transposed, pattern="random"):
    shape, k, kernel, *_, size = case
    weight = torch.randn(k, shape[3], *kernel)
    return zeros_as(pattern, (shape[0], *size, k) if transposed else shape), weight


def assert_close(y, x, weight, case, transposed, bias=0.0):
    """|error| <= 8 eps sum |a| |b|, the bound of a sum of products in any sensible order, element by element."""
    exact = dense(x.double(), weight.double(), case, transposed) + bias
    bound = 8 * EPS * (dense(x.double().abs(), weight.double().abs(), case, transposed) + abs(bias))
    bound += x.shape[3] * weight[0, 0].numel() * 2.0**-149  # a product below the normal numbers is rounded to these
    wrong = ((y.double() - exact).abs() > bound).nonzero()
    assert len(wrong) == 0, (case, transposed, wrong[:3].tolist())


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
def test_numbers_and_counts(isa, transposed):
    for case, pattern in zip(cases(60, 1), itertools.cycle(PATTERNS)):
        x, weight = operands(case, transposed, pattern)
        y, _, counts = run(x, weight, case, transposed)
        assert_close(y, x, weight, case, transposed)
        ones = dense((x != 0).double(), torch.ones_like(weight, dtype=torch.double), case, transposed)
        assert counts.tolist() == [int((x != 0).sum()), int(ones.sum().round())], (case, pattern)


LAYERS = [
    ((2, 6, 9, 48), 40, (3, 3), (1, 1), (1, 1), (1, 1), (6, 9)),
    ((2, 9, 9, 33), 130, (3, 3), (2, 2), (1, 1), (1, 1), (5, 5)),
    ((3, 5, 43, 72), 300, (1, 1), (1, 1), (0, 0), (1, 1), (5, 43)),
    ((2, 7, 7, 16), 24, (1, 1), (2, 2), (0, 0), (1, 1), (4, 4)),
    ((1, 3, 3, 20), 24, (2, 2), (1, 1), (4, 3), (1, 1), (10, 8)),  # outputs that no input reaches
    ((1, 6, 6, 16), 16, (2, 3), (3, 2), (0, 1), (2, 3), (2, 1)),
]


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
def test_bias_relu_and_bits(isa, case, transposed):
    x, weight = operands(case, transposed)
    kept = torch.rand(x.shape) < 0.6
    dirty = x.masked_fill(~kept, float("nan"))
    bias = torch.randn(case[0][3] if transposed else case[1])
    y, bits, counts = run(
        dirty, weight, case, transposed, bias=bias, bits=reference.relu_bits(kept.float())[1], relu=True
    )
    x = x * kept
    plain, none, plain_counts = run(x, weight, case, transposed, bias=bias)
    assert_close(plain, x, weight, case, transposed, bias.double())
    assert none.shape == (0,) and counts.tolist() == plain_counts.tolist()
    expected = reference.relu_bits(plain)
    assert_same_bits(y, expected[0])
    assert_same_bits(bits, expected[1])


def test_zero_meets_no_weight_and_nan_does(isa):
    case = LAYERS[0]
    x, weight = operands(case, False)
    x[..., 7] = torch.where(torch.rand(x.shape[:3]) < 0.5, -0.0, 0.0)
    weight[:, 7] = float("inf")
    assert_close(run(x, weight, case, False)[0], x, weight.where(weight.isfinite(), torch.zeros(())), case, False)
    x[1, 2, 3, 5] = float("nan")
    y, bits, _ = run(x, weight, case, False, relu=True)
    met = torch.zeros(case[0][:3], dtype=torch.bool)
    met[1, 1:4, 2:5] = True
    assert torch.equal(y.isnan().any(3), met) and torch.equal(y.isnan().all(3), met)
    assert bool((reference.keep_bits(y, bits).isnan() == y.isnan()).all())


@pytest.mark.parametrize("case", [*LAYERS, ((1, 1, 3000, 64), 70, (1, 1), (1, 1), (0, 0), (1, 1), (1, 3000))], ids=str)
def test_threads_and_runs_change_no_bit(isa, case):
    for transposed in (False, True):
        x, weight = operands(case, transposed)
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(x, weight, case, transposed, relu=True))
        for y, bits, counts in results[1:]:
            assert_same_bits(y, results[0][0])
            assert_same_bits(bits, results[0][1])
            assert counts.tolist() == results[0][2].tolist()


def test_weights_of_any_strides_pack_the_same(isa):
    weight = torch.randn(70, 40, 3, 5)
    packed = cpu.skip_pack(weight)
    for order in ((0, 2, 3, 1), (1, 0, 2, 3), (2, 3, 1, 0), (3, 0, 1, 2)):
        other = weight.permute(order).contiguous().permute([order.index(i) for i in range(4)])
        assert_same_bits(cpu.skip_pack(other), packed)
    torch.set_num_threads(3)
    assert_same_bits(cpu.skip_pack(weight), packed)
    # Everything is there once, and the rest is zero.
    assert packed.sum(dtype=torch.double).item() == pytest.approx(weight.sum(dtype=torch.double).item(), abs=1e-6)
    assert int((packed != 0).sum()) == weight.numel()


def test_nothing_in_nothing_out(isa):
    weight = torch.randn(24, 16, 3, 3)
    packed = cpu.skip_pack(weight)
    geometry = (3, 3), (1, 1), (1, 1), (1, 1), False
    for shape in ((0, 4, 4, 16), (2, 0, 4, 16)):
        y, bits, counts = cpu.skip_conv(torch.zeros(shape), packed, None, None, 24, *geometry, shape[1:3], True)
        assert y.shape == (*shape[:3], 24) and bits.shape == (*shape[:3], 1) and counts.tolist() == [0, 0]
    x = torch.ones(1, 2, 2, 16)
    y, _, counts = cpu.skip_conv(x, cpu.skip_pack(weight[:0]), None, None, 0, *geometry, (2, 2), False)
    assert y.numel() == 0 and counts.tolist() == [64, 0]
    bias = torch.randn(24)
    y, _, _ = cpu.skip_conv(
        torch.ones(1, 2, 2, 0), cpu.skip_pack(weight[:, :0]), bias, None, 24, *geometry, (2, 2), False
    )
    assert torch.equal(y, bias.expand(1, 2, 2, 24))


@pytest.mark.parametrize("shape", [(5, 7), (0, 3), (3, 0), (70,), (2, 3, 64), (1000, 33)], ids=str)
def test_relu_bits(isa, shape):
    x = torch.randn(shape)
    if x.numel() > 9:
        x.view(-1)[:9] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-42, -1e-42, 1, -1])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        y, bits = cpu.relu_bits(x)
        expected = reference.relu_bits(x)
        assert_same_bits(y, expected[0])
        assert_same_bits(bits, expected[1])
        kept = cpu.keep_bits(x.flip(0), bits)
        assert_same_bits(kept, reference.keep_bits(x.flip(0), bits))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 300), (3, 257, 513), (2, 600, 17), (0, 3, 4), (2, 0, 5)], ids=str)
def test_reorder(isa, shape):
    x = torch.randn(shape)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert_same_bits(cpu.reorder(x), reference.reorder(x))


PACKED = cpu.skip_pack(torch.ones(24, 16, 3, 3))
X = torch.ones(1, 4, 4, 16)


def call(x=X, packed=PACKED, bias=None, bits=None, out=24, kernel=(3, 3), stride=(1, 1), padding=(1, 1), size=(4, 4)):
    return cpu.skip_conv(x, packed, bias, bits, out, kernel, stride, padding, (1, 1), False, size, False)


REFUSED = [
    (lambda: call(x=X.double()), TypeError, "x must have dtype torch.float32, got torch.float64"),
    (lambda: call(x=X.transpose(1, 3)), ValueError, "x must be contiguous"),
    (lambda: call(x=X[0]), ValueError, "x must have 4 dimensions"),
    (lambda: call(out=80), ValueError, "packed must have shape .* out=80"),
    (lambda: call(kernel=(1, 1)), ValueError, r"packed must have shape .* kernel=\(1, 1\)"),
    (lambda: call(bias=torch.ones(23)), ValueError, "bias must have 24 entries, got 23"),
    (lambda: call(bits=torch.ones(1, 4, 4, 2, dtype=torch.int32)), ValueError, r"bits must have shape \(1, 4, 4, 1\)"),
    (lambda: call(stride=(0, 1)), ValueError, r"stride must be at least 1, got \(0, 1\)"),
    (lambda: call(padding=(0, -1)), ValueError, r"padding must be at least 0, got \(0, -1\)"),
    (lambda: call(size=(-1, 4)), ValueError, r"size must be at least 0, got \(-1, 4\)"),
    (lambda: cpu.skip_pack(torch.ones(3, 3)), ValueError, "weight must have 4 dimensions"),
    (lambda: cpu.keep_bits(X, torch.ones(1, 4, 4, 2, dtype=torch.int32)), ValueError, "bits must have shape"),
    (lambda: cpu.relu_bits(torch.tensor(1.0)), ValueError, "x must have at least 1 dimension"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED, ids=[r[2][:40] for r in REFUSED])
def test_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_weights_packed_for_another_instruction_set_are_refused(isa):
    outs = {name: cpu.skip_pack(torch.ones(64, 16, 1, 1)).shape[-1] for name in [isa]}[isa]
    assert outs == {"scalar": 16, "avx2": 32, "avx512": 64}[isa]
    if PACKED.shape != cpu.skip_pack(torch.ones(24, 16, 3, 3)).shape:
        with pytest.raises(ValueError, match=f"instruction set {isa}, got .*; pack the weight again"):
            call()
    else:
        call()

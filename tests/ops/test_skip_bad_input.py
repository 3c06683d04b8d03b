"""Law: a bad argument raises an error that names it, quotes it and says what was expected; before any work."""

from functools import partial

import pytest
import torch

import gossamer as gs

X, W, B = torch.ones(2, 16, 6, 6), torch.ones(24, 16, 3, 3), torch.ones(24)
V = torch.ones(24, 16)
HALF = [t.half() for t in (X, W, B)]
conv2d, linear = gs.ops.conv2d, gs.ops.linear
MASK = r"\[2, 16\]"

CALLS = {
    "x type": (lambda: conv2d([1.0], W), TypeError, "x must be a tensor, got list"),
    "x dim": (lambda: conv2d(X[0, 0], W), ValueError, r"x must have shape \[N, C, H, W\] or .* got \(6, 6\)"),
    "x dim 5": (lambda: conv2d(X[None], W), ValueError, r"x must have shape .* got \(1, 2, 16, 6, 6\)"),
    "weight type": (lambda: conv2d(X, None), TypeError, "weight must be a tensor, got NoneType"),
    "weight dim": (
        lambda: conv2d(X, V),
        ValueError,
        r"weight must have shape \[K, C // groups, R, S\], got \(24, 16\)",
    ),
    "bias type": (lambda: conv2d(X, W, 3.0), TypeError, "bias must be a tensor, got float"),
    "bias shape": (lambda: conv2d(X, W, B[:3]), ValueError, r"bias must have shape \[24\].* got \(3,\)"),
    "channels": (lambda: conv2d(X[:, :8], W), ValueError, r"x must have weight.shape\[1\] \* groups = 16 channels"),
    "groups": (lambda: conv2d(X, W, groups=0), ValueError, "groups must be an int of at least 1, got 0"),
    "groups type": (lambda: conv2d(X, W, groups=1.0), ValueError, "groups must be an int of at least 1, got 1.0"),
    "groups and filters": (lambda: conv2d(X, W[:23, :8], groups=2), ValueError, "groups divide the 23 filters"),
    "stride": (lambda: conv2d(X, W, stride=0), ValueError, "stride must be at least 1, got 0"),
    "stride type": (
        lambda: conv2d(X, W, stride=(1, 2, 3)),
        TypeError,
        r"stride must be an int or a pair .*\(1, 2, 3\)",
    ),
    "stride float": (lambda: conv2d(X, W, stride=1.5), TypeError, "stride must be an int or a pair of ints, got 1.5"),
    "padding": (lambda: conv2d(X, W, padding=-1), ValueError, "padding must be at least 0, got -1"),
    "padding name": (lambda: conv2d(X, W, padding="full"), ValueError, "padding must be ints, 'same' or 'valid'"),
    "padding same": (lambda: conv2d(X, W, None, 2, "same"), ValueError, r"padding='same' needs stride 1, got \(2, 2\)"),
    "dilation": (lambda: conv2d(X, W, dilation=(1, 0)), ValueError, r"dilation must be at least 1, got \(1, 0\)"),
    "kernel too large": (
        lambda: conv2d(X, W, dilation=(1, 3)),
        ValueError,
        "weight must fit into the padded input: it reaches over 7 of 6 columns",
    ),
    "skip": (lambda: conv2d(X, W, skip="always"), ValueError, "skip must be 'auto', 'input' or 'never', got 'always'"),
    "relu": (lambda: conv2d(X, W, relu=1), TypeError, "relu must be a bool, got 1"),
    "site": (lambda: conv2d(X, W, site="conv1"), TypeError, "site must be a gossamer.planner.Site, its handle .* str"),
    "backend": (lambda: conv2d(X, W, backend="gpu"), ValueError, "backend must be .* got 'gpu'"),
    "backend's device": (lambda: conv2d(X, W, backend="triton"), ValueError, "needs x on cuda, got x on cpu"),
    "backend and never": (
        lambda: conv2d(X, W, skip="never", backend="cpu"),
        ValueError,
        "backend must be None with skip='never'.* got 'cpu'",
    ),
    "backend and groups": (
        lambda: conv2d(X, W[:, :8], groups=2, backend="cpu"),
        ValueError,
        "groups must be 1 with backend='cpu', got 2",
    ),
    "backend and dtype": (
        lambda: conv2d(*HALF, backend="cpu"),
        TypeError,
        "x must be float32 with backend='cpu', got torch.float16",
    ),
    "backend and two dtypes": (
        lambda: conv2d(X, W.double(), backend="reference"),
        TypeError,
        "weight must be a float of x's dtype torch.float32, got torch.float64",
    ),
    "backend and integers": (
        lambda: conv2d(X.int(), W.int(), backend="reference"),
        TypeError,
        "x must be a float .* got torch.int32",
    ),
    "backend and layout": (
        lambda: linear(torch.ones(3, 16).to_sparse(), V, backend="cpu"),
        TypeError,
        "x must be strided with backend='cpu', got torch.sparse_coo",
    ),
    "weight elsewhere": (
        lambda: conv2d(X, W.to("meta"), skip="input"),
        ValueError,
        "weight must be on x's device cpu, got meta",
    ),
    "bias elsewhere": (
        lambda: linear(X[..., 0, 0], V, B.to("meta"), skip="never"),
        ValueError,
        "bias must be on x's device cpu, got meta",
    ),
    "linear x": (lambda: linear(3.0, V), TypeError, "x must be a tensor, got float"),
    "linear scalar": (lambda: linear(torch.tensor(1.0), V), ValueError, r"x must have shape \[..., C\], got a scalar"),
    "linear weight": (lambda: linear(torch.ones(2, 16), W), ValueError, r"weight must have shape \[K, C\], got \(24"),
    "linear columns": (
        lambda: linear(torch.ones(2, 15), V),
        ValueError,
        r"x must have 16 columns.* got shape \(2, 15\)",
    ),
    "linear bias": (lambda: linear(torch.ones(2, 16), V, V), ValueError, r"bias must have shape \[24\].*\(24, 16\)"),
    "linear skip": (lambda: linear(torch.ones(2, 16), V, skip=None), ValueError, "skip must be .* got None"),
}


@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_insisted_backend_does_not_enter_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="leave autocast"):
        conv2d(X, W, backend="cpu")


LAYERS = {"conv2d": lambda x, skip: conv2d(x, W, skip=skip), "linear": lambda x, skip: linear(x, V, skip=skip)}
INPUTS = {"conv2d": X, "linear": torch.ones(3, 16)}


@pytest.mark.parametrize("name", LAYERS)
def test_what_must_skip_refuses_other_transforms(name):
    """A kernel would drop a tangent; a derivative of zero is a wrong number."""
    layer, x = partial(LAYERS[name], skip="input"), INPUTS[name]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match=r"has no forward-mode derivative.*'auto' or 'never'"):
            layer(dual)
        layer(x)  # no tangent: as ever
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        torch.func.vmap(layer)(x[None])
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func"):
        torch.func.grad(lambda x: layer(x).sum())(x)


@pytest.mark.parametrize("skip", ["auto", "never"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_may_be_torchs_own_takes_them(name, skip):
    layer, x = partial(LAYERS[name], skip=skip), INPUTS[name]
    for _ in range(2):
        layer(x)  # "auto" would skip next
    assert torch.equal(torch.func.vmap(layer)(x[None])[0], LAYERS[name](x, "never"))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        expected = transform(lambda x: LAYERS[name](x, "never").square())(x)
        assert torch.equal(transform(lambda x: layer(x).square())(x), expected)


@pytest.mark.parametrize("skip", ["auto", "input"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_many_outputs_at_once(name, skip):
    """The skipping forward ran; backward is torch's own for a batch of gradients."""
    x = INPUTS[name].clone().requires_grad_()
    found = torch.autograd.functional.jacobian(lambda x: LAYERS[name](x, skip).square(), x, vectorize=True)
    assert torch.equal(found, torch.func.jacrev(lambda x: LAYERS[name](x, "never").square())(x))


def test_a_bias_in_steps_and_no_columns():
    bias = torch.ones(1).expand(24)
    assert torch.equal(conv2d(X, W, bias, skip="input"), conv2d(X, W, bias.clone(), skip="input"))
    few, stored = torch.ones(2, 16), V.t().contiguous().t()
    assert torch.equal(linear(few, stored, bias, skip="input"), linear(few, stored, bias.clone(), skip="input"))
    y = linear(torch.ones(3, 5, 0), torch.ones(24, 0), bias, skip="input")
    assert torch.equal(y, torch.ones(3, 5, 24))


def test_a_site_that_is_gone():
    site = gs.planner.Site()
    handle = site.handle
    del site
    with pytest.raises(ValueError, match="handle must be that of a living Site"):
        torch.ops.gossamer.skip_zeros(X, W, None, [1, 1, 0, 0, 1, 1], "auto", False, handle, False, None)

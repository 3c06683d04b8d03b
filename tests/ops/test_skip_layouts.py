"""Law: whatever form the arguments have, the numbers are torch's; results that could skip are channels_last."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import gossamer as gs
from gossamer.ops.skipping import passes
from gossamer.ops.skipping.memory_format import LAST, in_format

backends = pytest.mark.parametrize("backend", ["reference", "cpu"])


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


@backends
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 2), (4, 5)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding, kernel, dilation, backend):
    x, weight = integers(2, 8, 19, 17).relu(), integers(8, 8, *kernel)
    y = gs.ops.conv2d(x, weight, padding=padding, dilation=dilation, skip="input", backend=backend)
    assert torch.equal(y, F.conv2d(x, weight, padding=padding, dilation=dilation))


@backends
@pytest.mark.parametrize("skip", ["input", "auto"])
def test_one_image_without_a_batch(skip, backend):
    x, weight, bias = integers(16, 7, 6), integers(24, 16, 3, 3), integers(24)
    y = gs.ops.conv2d(x, weight, bias, (2, 1), [1, 0], skip=skip, backend=backend)
    assert torch.equal(y, F.conv2d(x, weight, bias, (2, 1), [1, 0]))


@backends
@pytest.mark.parametrize("skip", ["input", "auto"])
def test_strides_do_not_matter(skip, backend):
    base, weight = integers(2, 16, 7, 6), integers(24, 16, 3, 3)
    expected = F.conv2d(base, weight)
    last = torch.channels_last
    images = (
        base,
        base.contiguous(memory_format=last),
        base.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([base, base], 4)[..., 0],
        torch.cat([base, base], 1)[:, :16],
        torch.cat([base, base], 1).contiguous(memory_format=last)[:, :16],
        base[:1].expand(2, -1, -1, -1),
    )
    weights = (
        weight,
        weight.contiguous(memory_format=last),
        weight.flip(3).contiguous().flip(3),
        torch.cat([weight] * 2)[24:],
    )
    for x in images:
        for w in weights:
            y, its = gs.ops.conv2d(x, w, skip=skip, backend=backend), F.conv2d(x, w)
            assert y.stride() == its.stride()
            assert torch.equal(y, its if x.stride(0) == 0 else expected)


# A graph learns strides from the same fake rule whatever the kernel: each value once is enough of them.
COMPILED = {(1, "input", False), (3, "auto", True)}


@pytest.mark.parametrize(
    ("kernel", "skip", "relu", "compiled"),
    [
        (*each, compiled)
        for each in itertools.product((1, 3), ("input", "auto"), (False, True))
        for compiled in (False, True)
        if not compiled or each in COMPILED
    ],
)
def test_results_lie_in_memory_as_torchs_do(kernel, skip, relu, compiled):
    """So that a view of the output, or of the input gradient, works after a conversion if it did before."""
    if compiled:
        torch.compiler.reset()
    layer = partial(gs.ops.conv2d, padding=kernel // 2, skip=skip, relu=relu, site=gs.planner.Site())
    if compiled:
        layer = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def torchs(x, weight):
        y = F.conv2d(x, weight, padding=kernel // 2)
        return y.relu() if relu else y

    def strides(function, x, weight):
        seen, inner = [], x * 1
        inner.register_hook(lambda gradient: seen.append(gradient.stride()))
        for _ in range(3):  # "auto" takes its paths in turn
            y = function(inner, weight)
        y.square().sum().backward()
        return [y.stride(), *seen]

    orders = torch.contiguous_format, torch.channels_last
    for x_order, weight_order in itertools.product(orders, orders):
        x = integers(2, 16, 7, 6).contiguous(memory_format=x_order).requires_grad_()
        weight = integers(24, 16, kernel, kernel).contiguous(memory_format=weight_order).requires_grad_()
        assert strides(layer, x, weight) == strides(torchs, x, weight), (x_order, weight_order)


LAYOUTS = {
    "contiguous": lambda weight: weight,
    "channels last": lambda weight: weight.contiguous(memory_format=torch.channels_last),
    "by input channel": lambda weight: weight.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("path", ["dense", "skip_x", "skip_dy"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weights_gradient_has_its_strides(layout, kernel, path, compiled, monkeypatch):
    """And is what the kernel wrote, where it writes that layout; torch's own may write channels_last for x's sake."""
    torch.compiler.reset()
    made = []
    laid_out_as = passes.laid_out_as
    monkeypatch.setattr(passes, "laid_out_as", lambda dw, weight: made.append(dw.data_ptr()) or laid_out_as(dw, weight))
    monkeypatch.setattr(passes.Passes, "_algorithm", lambda self, pass_, *_: path if pass_ == "weight" else "dense")
    weight = LAYOUTS[layout](integers(24, 16, kernel, kernel)).requires_grad_()
    layer = partial(gs.ops.conv2d, site=gs.planner.Site())
    if compiled:
        layer = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = integers(2, 16, 9, 9).relu()
    layer(x, weight).sum().backward()
    assert weight.grad.stride() == weight.stride()
    assert torch.equal(weight.grad, torch.autograd.grad(F.conv2d(x, weight).sum(), weight)[0])
    copied = layout == "by input channel" or (layout == "contiguous" and path == "dense")
    assert len(made) == 1 and (copied or made == [weight.grad.data_ptr()])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("skip", ["input", "auto"])
@pytest.mark.parametrize("shape", [(0, 16, 6, 6)], ids=str)
def test_an_empty_batch(shape, skip, relu):
    x, weight, bias = torch.ones(shape, requires_grad=True), integers(24, 16, 3, 3), integers(24)
    weight.requires_grad_(), bias.requires_grad_()
    y = gs.ops.conv2d(x, weight, bias, skip=skip, relu=relu)
    assert y.shape == (0, 24, 4, 4)
    y.sum().backward()
    assert x.grad.shape == shape and not weight.grad.any() and not bias.grad.any()
    rows = torch.ones(0, 16, requires_grad=True)
    y = gs.ops.linear(rows, integers(24, 16).requires_grad_(), skip=skip, relu=relu)
    y.sum().backward()
    assert y.shape == (0, 24) and rows.grad.shape == (0, 16)


def test_no_gradient_is_recorded_where_none_is_wanted():
    x, weight = integers(2, 16, 6, 6), integers(24, 16, 3, 3).requires_grad_()
    with torch.no_grad():
        assert not gs.ops.conv2d(x, weight, skip="input").requires_grad
    assert not gs.ops.conv2d(x, weight.detach(), skip="input").requires_grad
    with torch.inference_mode():
        y = gs.ops.conv2d(x, weight, skip="input", relu=True)
        assert y.is_inference() and torch.equal(y, F.conv2d(x, weight).relu())
        other = gs.ops.conv2d(x.clone(), weight, skip="auto")
        assert torch.equal(other, F.conv2d(x, weight))


@pytest.mark.parametrize("shape", [(2, 33, 40, 51), (70, 64, 1, 16), (1, 3, 150, 151), (2, 16, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_change_their_order_in_memory(shape, dtype):
    """Ours and torch's copies are the same tensor, which may be written in place; what is in order is not copied."""
    x = torch.randn(shape, dtype=dtype)
    for made, order in ((x, LAST), (x.contiguous(memory_format=LAST), torch.contiguous_format), (x[:, 1:], LAST)):
        y, expected = in_format(made, order), made.contiguous(memory_format=order)
        assert torch.equal(y, expected) and y.stride() == expected.stride() and not y._is_view()
        assert in_format(y, order) is y


def test_never_is_torchs_own():
    x, weight = integers(2, 16, 6, 6), integers(24, 8, 3, 3)
    site = gs.planner.Site()
    for options in ({"groups": 2}, {"groups": 2, "padding": "same"}):
        y = gs.ops.conv2d(x, weight, skip="never", site=site, **options)
        assert torch.equal(y, F.conv2d(x, weight, **options)) and y.stride() == F.conv2d(x, weight, **options).stride()
    assert torch.equal(
        gs.ops.conv2d(x, weight, groups=2, relu=True, skip="never"), F.conv2d(x, weight, groups=2).relu()
    )
    assert not site.refused and not site.stats()

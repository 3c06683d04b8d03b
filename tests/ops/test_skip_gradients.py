"""Law: gradients are those of the dense layer, to any order, and only what is asked for is computed."""

import pytest
import torch
import torch.nn.functional as F

import gossamer as gs

REFERENCE = {"skip": "input", "backend": "reference"}


def leaves(*shapes):
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


LAYERS = {
    "conv2d": (
        lambda relu: lambda x, w, b: gs.ops.conv2d(x, w, b, 2, 1, relu=relu, **REFERENCE),
        (2, 3, 5, 4),
        (4, 3, 3, 3),
    ),
    "dilated": (
        lambda relu: lambda x, w, b: gs.ops.conv2d(x, w, b, 1, 1, 2, relu=relu, **REFERENCE),
        (1, 2, 5, 6),
        (3, 2, 3, 3),
    ),
    "1x1": (lambda relu: lambda x, w, b: gs.ops.conv2d(x, w, b, relu=relu, **REFERENCE), (2, 3, 2, 2), (4, 3, 1, 1)),
    "same": (
        lambda relu: lambda x, w, b: gs.ops.conv2d(x, w, b, padding="same", relu=relu, **REFERENCE),
        (2, 4, 5),
        (3, 2, 2, 3),
    ),
    "linear": (lambda relu: lambda x, w, b: gs.ops.linear(x, w, b, relu=relu, **REFERENCE), (2, 3, 5), (4, 5)),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck_twice(name, relu):
    layer, *shapes = LAYERS[name]
    inputs = leaves(*shapes, (shapes[1][0],))
    assert torch.autograd.gradcheck(layer(relu), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer(relu), inputs, fast_mode=True)


def layers(relu=False, **options):
    return {
        "conv2d": (
            lambda x, w, b: gs.ops.conv2d(x, w, b, padding=1, relu=relu, **options),
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            (2, 16, 6, 5),
            (24, 16, 3, 3),
        ),
        "linear": (
            lambda x, w, b: gs.ops.linear(x, w, b, relu=relu, **options),
            F.linear,
            (20, 16),
            (24, 16),
        ),
    }


@pytest.mark.parametrize("skip", ["input", "auto"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("wanted", [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_only_what_is_asked_for(name, wanted, relu, skip):
    site = gs.planner.Site()
    ours, dense, *shapes = layers(relu, skip=skip, site=site)[name]
    for _ in range(3 if skip == "auto" else 1):
        tensors = [torch.randint(-3, 4, shape).float() for shape in (*shapes, shapes[1][:1])]
        grads = []
        for function in (ours, dense):
            inputs = [t.clone().requires_grad_(bool(want)) for t, want in zip(tensors, wanted, strict=True)]
            y = function(*inputs)
            y = y.relu() if relu and function is dense else y
            assert y.requires_grad == any(wanted)
            if any(wanted):
                y.backward(torch.ones_like(y).where(torch.arange(y.numel()).view(y.shape) % 3 == 0, 0))
            grads.append([y.detach(), *(t.grad for t in inputs)])
        for one, two in zip(*grads, strict=True):
            assert (one is None) == (two is None) and (one is None or torch.equal(one, two))
    ran = {"forward": True, "input": wanted[0], "weight": wanted[1]}
    assert set(site.stats()) == {name for name, did in ran.items() if did}


@pytest.mark.parametrize("name", ["conv2d", "linear"])
@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_of_the_fast_path(name, relu):
    """create_graph goes through torch's operators; the numbers must be those of the dense layer."""
    ours, dense, *shapes = layers(relu, skip="input")[name]
    tensors = [torch.randint(-2, 3, shape).float() for shape in (*shapes, shapes[1][:1])]
    found = []
    for function in (ours, dense):
        inputs = [t.clone().requires_grad_() for t in tensors]
        y = function(*inputs)
        y = y.relu() if relu and function is dense else y
        first = torch.autograd.grad(y, inputs, torch.ones_like(y), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first[:2]), inputs[:2]))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_gradients_have_the_layout_of_what_they_belong_to():
    """Autograd copies a weight's gradient that lies otherwise, and a layer before wants channels_last."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = torch.randn(24, 16, 3, 3).contiguous(memory_format=memory_format).requires_grad_()
        x = torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
        for skip in ("input", "auto"):
            y = gs.ops.conv2d(x, weight, padding=1, skip=skip)
            assert y.is_contiguous(memory_format=torch.channels_last)
            dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
            assert dx.is_contiguous(memory_format=torch.channels_last)
            assert dw.is_contiguous(memory_format=memory_format)


def test_a_relu_in_place_may_follow():
    x, weight = torch.randn(2, 16, 6, 6, requires_grad=True), torch.randn(24, 16, 3, 3, requires_grad=True)
    for options in ({"skip": "input"}, {"skip": "auto"}, {"skip": "input", "relu": True}):
        y = gs.ops.conv2d(x, weight, **options)
        assert y.relu_().sum().requires_grad and not y._is_view()
        y.sum().backward()
    y = gs.ops.linear(torch.randn(20, 16, requires_grad=True), torch.randn(8, 16), skip="input")
    y.relu_().sum().backward()


def test_relu_keeps_bits_and_not_its_result():
    x, weight = torch.randn(2, 16, 6, 6), torch.randn(64, 16, 3, 3, requires_grad=True)
    y = gs.ops.conv2d(x, weight, padding=1, relu=True, skip="input")
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert not any(t.shape == y.shape for t in saved)
    assert [t.shape for t in saved if t.dtype == torch.int32] == [(2, 6, 6, 2)]

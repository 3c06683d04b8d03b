"""gs.nn.Conv2d and gs.nn.Linear are torch's, but for the zeros: parameters, keys, shapes, errors, exports."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.planner import Site

CONVS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "same": {"kernel_size": (3, 5), "padding": "same", "dilation": (2, 1)},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "circular"},
    "replicate": {"kernel_size": 5, "padding": "same", "padding_mode": "replicate"},
    "groups": {"kernel_size": 3, "groups": 4},
}
LAYERS = [("conv", options) for options in CONVS.values()] + [("linear", {}), ("linear", {"bias": False})]


def pair(kind, options, **more):
    """torch's layer and ours with its parameters, and an input half of which is zero."""
    x = torch.randn(2, 16, 9, 8).relu() if kind == "conv" else torch.randn(2, 7, 16).relu()
    theirs, ours = {"conv": (nn.Conv2d, gs.nn.Conv2d), "linear": (nn.Linear, gs.nn.Linear)}[kind]
    reference = theirs(16, 24, **options)
    layer = ours(16, 24, **options, **more)
    layer.load_state_dict(reference.state_dict(), strict=True)
    return reference, layer, x


EPS = torch.finfo(torch.float32).eps


def bound(reference, x):
    """Part E of the specification: |error| <= 8 eps sum |x| |w|, for either of two results."""
    absolute = copy.deepcopy(reference).double()
    for parameter in absolute.parameters():
        parameter.data = parameter.data.abs()
    return 16 * EPS * absolute(x.double().abs())


@pytest.mark.parametrize("skip", ["auto", "input", "never"])
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_equal_to_torchs_layer_in_output_and_gradients(kind, options, skip):
    reference, layer, x = pair(kind, options, skip=skip)
    if options.get("groups"):
        layer.skip = "auto"
    expected, limit = reference(x), bound(reference, x)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for _ in range(3):  # "auto" takes dense and skip in turn
        y = layer(x)
        assert y.shape == expected.shape
        assert ((y - expected).abs() <= limit).all()
    dy = torch.randn_like(expected).relu()
    for module, each in zip((reference, layer), inputs, strict=True):
        module(each).backward(dy)
    absolute = copy.deepcopy(reference)
    for parameter in absolute.parameters():
        parameter.data, parameter.grad = parameter.data.abs(), None
    each = x.abs().requires_grad_()
    absolute(each).backward(dy.abs())
    assert ((inputs[0].grad - inputs[1].grad).abs() <= 16 * EPS * each.grad).all()
    for mine, theirs, most in zip(layer.parameters(), reference.parameters(), absolute.parameters(), strict=True):
        # The bias's gradient is a sum of up to 144 terms, the weight's of up to 144 too.
        assert ((mine.grad - theirs.grad).abs() <= 16 * EPS * most.grad).all()


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_a_fused_relu_is_a_relu_behind(kind, options):
    reference, layer, x = pair(kind, options, relu=True)
    expected = reference(x)
    for _ in range(3):
        y = layer(x)
        assert ((y - expected.relu()).abs() <= bound(reference, x)).all() and (y >= 0).all()


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_state_dicts_fit_both_ways(kind, options):
    reference, layer, _ = pair(kind, options)
    assert list(layer.state_dict()) == list(reference.state_dict())
    reference.load_state_dict(layer.state_dict(), strict=True)
    assert [type(p) for p in layer.parameters()] == [nn.Parameter] * len(list(reference.parameters()))


@pytest.mark.parametrize(("ours", "theirs"), [(gs.nn.Conv2d, nn.Conv2d), (gs.nn.Linear, nn.Linear)])
def test_arguments_are_torchs_and_three_more(ours, theirs):
    mine, torchs = (inspect.signature(kind.__init__).parameters for kind in (ours, theirs))
    assert list(mine)[: len(torchs)] == list(torchs)
    assert [mine[name].default for name in torchs] == [torchs[name].default for name in torchs]
    assert set(mine) - set(torchs) == {"skip", "relu", "keep_packed"}
    assert mine["skip"].kind is mine["relu"].kind is mine["keep_packed"].kind is inspect.Parameter.KEYWORD_ONLY


def test_same_seed_same_weights_and_places():
    torch.manual_seed(3)
    ours = gs.nn.Conv2d(16, 8, 3)
    torch.manual_seed(3)
    assert torch.equal(ours.weight, nn.Conv2d(16, 8, 3).weight)
    layer = gs.nn.Linear(16, 8, device="meta", dtype=torch.bfloat16)
    assert layer.weight.is_meta and layer.weight.dtype is torch.bfloat16


def test_repr_says_what_is_special():
    assert repr(gs.nn.Conv2d(16, 8, 3)) == "Conv2d(16, 8, kernel_size=(3, 3), stride=(1, 1), skip='auto')"
    text = repr(gs.nn.Linear(4, 2, bias=False, skip="never", relu=True, keep_packed=True))
    assert text == "Linear(in_features=4, out_features=2, bias=False, skip='never', relu=True, keep_packed=True)"


@pytest.mark.parametrize("kind", [gs.nn.Conv2d, gs.nn.Linear])
def test_bad_options_are_named(kind):
    arguments = (16, 8, 3) if kind is gs.nn.Conv2d else (16, 8)
    with pytest.raises(ValueError, match=r"skip must be .* 'always'"):
        kind(*arguments, skip="always")
    with pytest.raises(TypeError, match=r"relu must be a bool, got 1"):
        kind(*arguments, relu=1)
    with pytest.raises(TypeError, match=r"keep_packed must be a bool, got None"):
        kind(*arguments, keep_packed=None)


def test_wrong_channels_raise():
    with pytest.raises(ValueError, match=r"16"):
        gs.nn.Conv2d(16, 8, 3)(torch.randn(2, 15, 8, 8))


def test_what_cannot_skip_is_torchs_own_and_says_why_once():
    layer = gs.nn.Conv2d(16, 8, 3).double()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    for _ in range(3):
        assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias))
    assert len(layer.site.refused) == 1 and "float64" in layer.site.refused[0]


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: saved(layer)],
    ids=["deepcopy", "pickle", "save"],
)
def test_a_copy_decides_for_itself(duplicate):
    layer = gs.nn.Conv2d(16, 8, 3, relu=True)
    x = torch.randn(2, 16, 8, 8).relu()
    expected = layer(x)
    other = duplicate(layer)
    assert other.site is not layer.site and other.site.key != layer.site.key and other.site.stats() == {}
    torch.testing.assert_close(other(x), expected)
    assert layer.site.stats()["forward"]["calls"] == {"dense": 1}


def saved(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def operators(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def network():
    return nn.Sequential(gs.nn.Conv2d(16, 8, 3, relu=True), nn.Flatten(), gs.nn.Linear(8 * 36, 4, relu=True))


def test_an_exported_model_holds_torchs_operators():
    net, x = network(), torch.randn(2, 16, 8, 8).relu()
    program = torch.export.export(net, (x,))
    assert operators(program.graph) >= {"aten.conv2d.default", "aten.relu.default"}
    assert not any("gossamer" in name for name in operators(program.graph))
    torch.testing.assert_close(program.module()(x), net(x))


def test_a_traced_model_computes_and_does_not_remember():
    net, x = network(), torch.randn(2, 16, 8, 8).relu()
    traced = torch.jit.trace(net, x)
    assert "aten::_convolution" in str(traced.inlined_graph)
    other = torch.randn(2, 16, 8, 8).relu()
    torch.testing.assert_close(traced(other), net(other))
    symbolic = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(symbolic(other), net(other))


def test_inference_mode_and_one_image():
    layer = gs.nn.Conv2d(16, 8, 3).eval()
    x = torch.randn(16, 8, 8).relu()
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    with torch.inference_mode():
        for _ in range(40):  # it comes to rest meanwhile
            y = layer(x)
            assert y.shape == expected.shape
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("relu", [False, True])
@torch.no_grad()
def test_a_layer_too_small_to_gain_is_torchs_own_and_computes_the_same(relu, mode, monkeypatch, clock):
    """Also where an image is as large as another one with its padding, and for images without a batch."""
    asked, choose = [], Site.choose
    monkeypatch.setattr(Site, "choose", lambda *arguments: asked.append(1) or choose(*arguments))
    clock.step = 1e-6
    layer = gs.nn.Conv2d(16, 8, 3, padding=1, padding_mode=mode, relu=relu)
    own = nn.Conv2d(16, 8, 3, padding=1, padding_mode=mode)
    own.load_state_dict(layer.state_dict())
    for call in range(200):
        shape = ((2, 16, 8, 8), (2, 16, 10, 10), (16, 8, 8))[2 if call % 50 == 49 else call // 2 % 2]
        x = torch.randn(shape).relu()
        y, expected = layer(x), own(x)
        torch.testing.assert_close(y, expected.relu() if relu else expected, atol=1e-5, rtol=1e-5)
    assert len(asked) < 100
    linear = gs.nn.Linear(16, 8, relu=relu)
    x = torch.randn(4, 16)
    for _ in range(50):
        y = linear(x)
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    torch.testing.assert_close(y, expected.relu() if relu else expected)

"""Law: what cannot skip runs torch's own operator and says why, once; the rest reports what it saw and follows it."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

import gossamer as gs
from gossamer.ops.skipping.passes import Passes, sampled


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


X, W, B = integers(2, 16, 6, 6), integers(24, 16, 3, 3), integers(24)

REFUSED = {
    "groups": (lambda f, **o: f(X, W[:, :8], B, groups=2, **o), "groups=2"),
    "depthwise": (lambda f, **o: f(X, W[:16, :1], groups=16, **o), "groups=16"),
    "bfloat16": (lambda f, **o: f(X.bfloat16(), W.bfloat16(), **o), "dtype torch.bfloat16"),
    "float64": (lambda f, **o: f(X.double(), W.double(), **o), "dtype torch.float64"),
    "meta": (lambda f, **o: f(X.to("meta"), W.to("meta"), **o), "device meta"),
}


@pytest.mark.parametrize("skip", ["auto", "input"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_torchs_own_and_why(name, relu, skip):
    call, reason = REFUSED[name]
    site = gs.planner.Site()
    for _ in range(3):
        y = call(gs.ops.conv2d, site=site, skip=skip, relu=relu)
    expected = call(F.conv2d)
    expected = expected.relu() if relu else expected
    assert y.dtype == expected.dtype and y.shape == expected.shape
    assert y.device.type == "meta" or torch.equal(y, expected)
    assert site.refused == (reason,) and not site.stats()


def test_few_channels_are_left_alone_unless_insisted_on():
    site = gs.planner.Site()
    x, weight = X[:, :3].contiguous(), W[:, :3].contiguous()
    expected = F.conv2d(x, weight)
    assert torch.equal(gs.ops.conv2d(x, weight, site=site), expected)
    assert site.refused == ("3 input channels, fewer than 8",)
    assert torch.equal(gs.ops.conv2d(x, weight, site=site, skip="input"), expected)
    assert site.stats()["forward"]["calls"] == {"skip": 1}


def test_autocast_is_torchs_own():
    site = gs.planner.Site()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gs.ops.conv2d(X, W, site=site, skip="input")
        z = gs.ops.linear(X.flatten(2), integers(8, 36), site=site)
    assert y.dtype == z.dtype == torch.bfloat16 and site.refused == ("autocast",)


def test_other_tensors_are_torchs_own():
    class Own(torch.Tensor):
        pass

    site = gs.planner.Site()
    y = gs.ops.conv2d(X.as_subclass(Own), W, site=site)
    assert type(y) is Own and site.refused == ("tensor subclass Own",)
    dense = torch.rand(4, 16).relu()
    y = gs.ops.linear(dense.to_sparse(), integers(8, 16).t().contiguous().t(), site=site)
    assert site.refused[1:] == ("layout torch.sparse_coo",)


def run(site, x, weight, dy, calls, **options):
    bias = torch.zeros(weight.shape[0], requires_grad=True)
    for _ in range(calls):
        x, weight = (t.detach().requires_grad_() for t in (x, weight))
        y = gs.ops.conv2d(x, weight, bias, padding=1, site=site, **options)
        y.backward(dy)
    return site.stats()


def test_densities_are_those_of_the_operands():
    x, dy = torch.randn(4, 32, 14, 14).relu(), torch.randn(4, 32, 14, 14)
    dy[torch.rand(dy.shape) < 0.8] = 0
    of_x, of_dy = (t.count_nonzero().item() / t.numel() for t in (x, dy))
    stats = run(gs.planner.Site(), x, torch.randn(32, 32, 3, 3), dy, 1, skip="input")
    assert {name: stats[name]["calls"] for name in stats} == {
        "forward": {"skip": 1}, "input": {"skip": 1}, "weight": {"skip_dy": 1}
    }  # fmt: skip
    assert stats["forward"]["density"]["x"] == pytest.approx(of_x, abs=1e-12)
    assert stats["input"]["density"]["dy"] == pytest.approx(of_dy, abs=1e-12)
    stats = run(gs.planner.Site(), x, torch.randn(32, 32, 3, 3), torch.randn(dy.shape), 1, skip="input")
    assert stats["weight"]["calls"] == {"skip_x": 1}


@pytest.mark.parametrize("wanted", ["weight", "both"])
def test_the_sparser_operand_is_skipped_whichever_passes_run(wanted):
    """The counts of the other passes are used; where a pass did not run, its operand is counted."""
    for x_zeros, dy_zeros, path in ((0.9, 0.1, "skip_x"), (0.1, 0.9, "skip_dy")):
        x = X.where(torch.rand(X.shape) > x_zeros, 0).requires_grad_(wanted == "both")
        weight, site = W.clone().requires_grad_(), gs.planner.Site()
        y = gs.ops.conv2d(x, weight, padding=1, skip="input", site=site)
        y.backward(torch.ones_like(y).where(torch.rand(y.shape) > dy_zeros, 0))
        assert site.stats()["weight"]["calls"] == {path: 1}


@pytest.mark.parametrize("channels", [(16, 64), (64, 16)])
def test_the_sparser_operand_is_not_the_smaller_one(channels):
    inputs, outputs = channels
    zeros = 0.4, 0.6
    for of_x, of_dy, path in ((*zeros, "skip_dy"), (*zeros[::-1], "skip_x")):
        x = torch.ones(2, inputs, 8, 8).where(torch.rand(2, inputs, 8, 8) > of_x, 0)
        weight, site = torch.randn(outputs, inputs, 1, 1, requires_grad=True), gs.planner.Site()
        y = gs.ops.conv2d(x, weight, skip="input", site=site)
        y.backward(torch.ones_like(y).where(torch.rand(y.shape) > of_dy, 0))
        assert site.stats()["weight"]["calls"] == {path: 1}


def test_what_the_relu_cut_counts_as_zeros_of_the_gradient():
    x, weight, site = torch.rand(2, 16, 8, 8), torch.randn(32, 16, 3, 3, requires_grad=True), gs.planner.Site()
    x[torch.rand(x.shape) < 0.4] = 0
    y = gs.ops.conv2d(x, weight, torch.full((32,), -8.0), padding=1, skip="input", relu=True, site=site)
    assert (y == 0).float().mean() > 0.6
    y.backward(torch.ones_like(y))
    assert site.stats()["weight"]["calls"] == {"skip_dy": 1}


def test_deterministic_choices_see_what_the_relu_cut():
    x, weight, site = torch.rand(2, 16, 8, 8), torch.randn(32, 16, 3, 3, requires_grad=True), gs.planner.Site()
    torch.use_deterministic_algorithms(True)
    try:
        y = gs.ops.conv2d(x.requires_grad_(), weight, torch.full((32,), -9.0), padding=1, relu=True, site=site)
        y.backward(torch.ones_like(y))
    finally:
        torch.use_deterministic_algorithms(False)
    calls = {name: seen["calls"] for name, seen in site.stats().items()}
    assert calls == {"forward": {"dense": 1}, "input": {"skip": 1}, "weight": {"skip_dy": 1}}


@pytest.mark.parametrize(("rows", "calls"), [(1, 1), (8, 1), (9, 0)])
def test_few_rows_read_only_the_rows_of_the_weight_that_they_need(rows, calls, monkeypatch):
    real, seen = Passes._kernel, []
    monkeypatch.setattr(Passes, "_kernel", lambda self, *name: seen.append(name) or real(self, *name))
    x, weight = torch.randn(rows, 32).relu(), torch.randn(32, 24).t()
    y = gs.ops.linear(x, weight, skip="input")
    assert seen.count(("skip_mv", "skip_mv")) == calls
    torch.testing.assert_close(y, x @ weight.t())


@pytest.mark.parametrize(("channels", "refused"), [(7, ("7 input channels, fewer than 8",)), (8, ())])
def test_eight_channels_are_enough(channels, refused):
    site = gs.planner.Site()
    gs.ops.conv2d(torch.rand(1, channels, 4, 4), torch.rand(8, channels, 3, 3), site=site)
    assert site.refused == refused


def test_a_sample_is_spread_over_the_memory():
    x = torch.zeros(4, 64, 500)
    x[:2] = 1
    share = pytest.approx(0.5, abs=1 / 11)  # of eleven pieces one may lie on either side
    assert sampled(x) == share and sampled(x.flip(0)) == share


def test_a_layer_whose_savings_are_compared_is_not_bypassed(monkeypatch):
    """Checkpointing runs a layer again and expects what it saved the first time."""
    asked, weight = [], W.clone().requires_grad_()
    monkeypatch.setattr(gs.planner.Site, "bypass", lambda *_: asked.append(1) or False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        gs.ops.conv2d(X, weight)
    assert not asked
    gs.ops.conv2d(X, weight)
    assert asked


def test_a_bias_alone_has_a_gradient_of_gradients():
    bias = torch.zeros(24, requires_grad=True)
    y = gs.ops.linear(torch.rand(4, 16), torch.rand(24, 16), bias, skip="input")
    (first,) = torch.autograd.grad(y.square().sum(), bias, create_graph=True)
    torch.testing.assert_close(first, 2 * y.sum(0))
    (second,) = torch.autograd.grad(first.sum(), bias)
    torch.testing.assert_close(second, torch.full((24,), 8.0))


def test_a_dense_gradient_is_seen_and_not_skipped():
    """The negative control: BatchNorm behind a convolution makes its gradient dense, whatever the relu after it cut."""
    torch.manual_seed(0)
    site, layer, norm = gs.planner.Site(), torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32)
    for _ in range(30):
        x = torch.randn(2, 32, 14, 14).relu().requires_grad_()
        y = gs.ops.conv2d(x, layer.weight, layer.bias, padding=1, site=site)
        norm(y).relu().sum().backward()
    stats = site.stats()
    assert stats["input"]["density"]["dy"] > 0.99
    assert stats["input"]["path"] == "dense" and stats["weight"]["path"] != "skip_dy"
    assert stats["input"]["calls"].get("skip", 0) <= 2
    assert stats["forward"]["density"]["x"] == pytest.approx(0.5, abs=0.05)


def test_dense_calls_sample_now_and_then():
    """Zeros that appear later are noticed: a site that runs dense counts those of a part of its operands."""
    torch.use_deterministic_algorithms(True)  # decisions by densities, so that the machine's load has no say
    try:
        site, weight = gs.planner.Site(), torch.randn(32, 32, 3, 3)
        dense, sparse = torch.randn(4, 32, 14, 14), torch.randn(4, 32, 14, 14)
        sparse[torch.rand(sparse.shape) < 0.9] = 0
        paths = []
        for x in (dense, sparse, dense):
            gs.ops.conv2d(x, weight, padding=1, site=site)
            paths.append(site.stats()["forward"]["path"])
        assert paths == ["dense", "skip", "dense"]
    finally:
        torch.use_deterministic_algorithms(False)
    site = gs.planner.Site()
    for _ in range(300):
        gs.ops.conv2d(dense[:1], weight, padding=1, site=site)
    before = site.stats()["forward"]
    assert before["density"]["x"] > 0.99 and before["path"] == "dense"
    for _ in range(2000):
        gs.ops.conv2d(sparse[:1], weight, padding=1, site=site)
    assert site.stats()["forward"]["density"]["x"] < 0.5


@pytest.mark.parametrize("mode", ["auto", "input"])
def test_deterministic_mode_repeats_itself(mode):
    x, weight = torch.randn(2, 32, 9, 9).relu(), torch.randn(40, 32, 3, 3)
    dy = torch.randn(2, 40, 9, 9)
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(3):
            site, one, two = gs.planner.Site(), x.clone().requires_grad_(), weight.clone().requires_grad_()
            for _ in range(2):
                y = gs.ops.conv2d(one, two, padding=1, relu=True, skip=mode, site=site)
                found.append([y.detach(), *torch.autograd.grad(y, (one, two), dy)])
        for other in found[1:]:
            for first, second in zip(found[0], other, strict=True):
                assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


def test_calls_without_a_site_share_one_per_geometry():
    from gossamer.ops.skipping.operators import shared_site

    x, weight = integers(1, 16, 5, 5), integers(17, 16, 3, 3)
    for padding in (0, 1, 1):
        gs.ops.conv2d(x, weight, padding=padding)
    calls = [sum(shared_site(weight.shape, (1, 1, p, p, 1, 1)).stats()["forward"]["calls"].values()) for p in (0, 1)]
    assert calls == [1, 2]


def test_a_mode_of_torch_is_no_subclass():
    site = gs.planner.Site()
    with torch.device("cpu"):
        y = gs.ops.conv2d(X, W, site=site, skip="input")
    assert torch.equal(y, F.conv2d(X, W)) and not site.refused


@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_that_has_settled_on_dense_is_torchs_own(relu):
    """Nothing is asked or reported in 31 of 32 calls; gradients and the counts of calls are as ever."""
    site, weight, bias = gs.planner.Site(), W.clone().requires_grad_(), B.clone().requires_grad_()
    x = X.where(X != 0, 1).contiguous(memory_format=torch.channels_last).requires_grad_()  # no zeros: nothing to try
    own = 0
    for _ in range(320):
        y = gs.ops.conv2d(x, weight, bias, padding=1, relu=relu, site=site)
        own += "SkipZeros" not in y.grad_fn.name()
        assert y.is_contiguous(memory_format=torch.channels_last)
        dense = F.conv2d(x, weight, bias, padding=1)
        dense = dense.relu() if relu else dense
        assert torch.equal(y, dense)
        dy = torch.ones_like(y)  # the relu's zeros remain a thing to skip
        ours, wanted = (torch.autograd.grad(out, (x, weight, bias), dy) for out in (y, dense))
        assert all(map(torch.equal, ours, wanted))
    stats = site.stats()
    if not relu:
        assert own > 240
        assert 320 <= stats["forward"]["calls"]["dense"] < 320 + 32
    assert stats["forward"]["density"]["x"] == 1.0
    gs.ops.conv2d(x.detach(), weight, site=site)  # another geometry is another question
    assert site.stats()["forward"]["calls"]["dense"] > stats["forward"]["calls"]["dense"]


def test_checkpointing_sees_the_same_tensors_saved_again():
    sites = gs.planner.Site(), gs.planner.Site()
    x, weight = torch.ones(2, 16, 6, 6, requires_grad=True), torch.randn(24, 16, 3, 3, requires_grad=True)
    matrix = torch.randn(10, 24 * 16, requires_grad=True)

    def layers(x, weight, matrix):
        y = gs.ops.conv2d(x, weight, relu=True, site=sites[0])
        return gs.ops.linear(y.flatten(1), matrix, site=sites[1])

    for step in range(100):
        torch.utils.checkpoint.checkpoint(layers, x, weight, matrix, use_reentrant=False).sum().backward()
        if step % 3 == 0:
            layers(x, weight, matrix).sum().backward()


def test_what_ends_a_bypass():
    """Another shape, zeros in the data at the next sample, and deterministic mode, which asks at every call."""
    site, weight = gs.planner.Site(), torch.randn(16, 16, 3, 3)
    full = torch.ones(2, 16, 6, 6)
    empty = full * (torch.rand(full.shape) < 0.1)
    for _ in range(40):
        gs.ops.conv2d(full, weight, site=site)
    assert site.bypassed(full.shape) and not site.bypassed((1, 16, 6, 6))
    calls = site.stats()["forward"]["calls"]["dense"]
    assert calls == 41, "a bypassed call counts"
    torch.use_deterministic_algorithms(True)
    try:
        gs.ops.conv2d(empty, weight, site=site)
    finally:
        torch.use_deterministic_algorithms(False)
    assert site.stats()["forward"]["calls"] == {"dense": 41, "skip": 1}
    before = site.stats()["forward"]["density"]["x"]
    for _ in range(1100):  # so small a layer is not looked at for 1000 calls
        gs.ops.conv2d(empty, weight, site=site)
    assert site.stats()["forward"]["density"]["x"] < before

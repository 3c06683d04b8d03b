"""skip_zeros: which modules it converts and which it leaves, what it fuses, what stays the same, and the way back."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

import gossamer as gs


def chain():
    """Fused, fused into nothing, not followed, followed by something else, in a Sequential of its own."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Dropout(0.0), nn.Linear(32, 5)),
    )  # fmt: skip


def image():
    return torch.randn(2, 3, 8, 8)


def test_what_is_converted_fused_and_left():
    net = chain()
    report = gs.nn.skip_zeros(net)
    assert report.converted == ("2", "4", "9.0", "9.3")
    assert report.fused == ("3", "9.1")
    assert report.left == {"0": "3 input channels, fewer than 8"}
    kinds = [type(module) for module in net]
    assert kinds[:5] == [nn.Conv2d, nn.ReLU, gs.nn.Conv2d, nn.Identity, gs.nn.Conv2d]
    assert [net[2].relu, net[4].relu, net[9][0].relu, net[9][3].relu] == [True, False, True, False]
    assert net[2].site.name == "2" and net[9][3].skip == "auto"


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("skip", ["auto", "input"])
def test_the_model_computes_what_it_did(fuse, skip):
    net, x = chain(), image()
    before = copy.deepcopy(net)
    gs.nn.skip_zeros(net, fuse, skip=skip)
    for _ in range(3):
        # Sums of 144 products and fewer, a normalisation between: some hundred roundings at most.
        torch.testing.assert_close(net(x), before(x), rtol=128 * 2**-23, atol=128 * 2**-23)


def test_parameters_stay_the_same_objects_and_keys_stay():
    net = chain()
    parameters, keys = dict(net.named_parameters()), list(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    saved = copy.deepcopy(net.state_dict())
    gs.nn.skip_zeros(net)
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
    assert list(net.state_dict()) == keys
    chain().load_state_dict(net.state_dict(), strict=True)
    net(image()).sum().backward()
    optimizer.step()
    assert not torch.equal(net[2].weight, saved["2.weight"])
    net.load_state_dict(saved, strict=True)
    assert torch.equal(net[2].weight, saved["2.weight"])


def test_back_again():
    net, x = chain().eval(), image()
    text, expected, parameters = repr(net), net(x), list(net.parameters())
    gs.nn.skip_zeros(net)
    names = gs.nn.unskip_zeros(net)
    assert names == ("2", "4", "9.0", "9.3") and repr(net) == text
    assert [a is b for a, b in zip(net.parameters(), parameters, strict=True)]
    assert not any(hasattr(module, "site") for module in net.modules())
    torch.testing.assert_close(net(x), expected)
    assert gs.nn.unskip_zeros(net) == ()


def test_no_way_back_without_a_place_for_the_relu():
    net = nn.Sequential(gs.nn.Conv2d(16, 16, 3, relu=True), nn.Identity(), gs.nn.Linear(16, 4, relu=True))
    with pytest.raises(ValueError, match=r"holds 2, with relu=True"):
        gs.nn.unskip_zeros(net)
    assert type(net[0]) is gs.nn.Conv2d and net[0].relu


def test_again_changes_only_what_is_asked():
    net = chain()
    gs.nn.skip_zeros(net, fuse=False)
    sites = [net[2].site, net[9][0].site]
    report = gs.nn.skip_zeros(net, skip="input")
    assert report.converted == ("2", "4", "9.0", "9.3") and report.fused == ("3", "9.1")
    assert [net[2].site, net[9][0].site] == sites and net[4].skip == "input"


def test_a_single_layer_is_a_model():
    layer = nn.Linear(16, 4)
    report = gs.nn.skip_zeros(layer)
    assert type(layer) is gs.nn.Linear and report.converted == ("",)
    assert "(the model)" in str(report)


class Own(nn.Conv2d):
    """A subclass may do anything."""


def replaced():
    layer = nn.Linear(16, 16)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "first convolution": (lambda: nn.Conv2d(7, 16, 3), "7 input channels, fewer than 8"),
    "groups": (lambda: nn.Conv2d(16, 16, 3, groups=2), "groups=2"),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), "groups=16"),
    "bfloat16": (lambda: nn.Conv2d(16, 16, 3, dtype=torch.bfloat16), "dtype torch.bfloat16"),
    "float16": (lambda: nn.Linear(16, 16, dtype=torch.float16), "dtype torch.float16"),
    "meta": (lambda: nn.Linear(16, 16, device="meta"), "device meta"),
    "subclass": (lambda: Own(16, 16, 3), "Own: may do more"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(16, 16, 3)), "computed by a parametrization"),
    "lazy": (lambda: nn.LazyConv2d(16, 3), "LazyConv2d has no shape yet"),
    "one dimension": (lambda: nn.Conv1d(16, 16, 3), "Conv1d: only Conv2d and Linear"),
    "transposed": (lambda: nn.ConvTranspose2d(16, 16, 3), "ConvTranspose2d: only"),
    "attention's": (lambda: nn.MultiheadAttention(16, 2), "NonDynamicallyQuantizableLinear"),
    "replaced forward": (replaced, "its forward was replaced"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_skip_is_left_with_its_reason(case):
    make, reason = LEFT[case]
    net = nn.Sequential(make(), nn.ReLU(), nn.Linear(16, 16))
    kinds = [type(module) for module in net]
    report = gs.nn.skip_zeros(net)
    assert report.converted == ("2",) and report.fused == ()
    (name,) = report.left
    assert name.startswith("0") and reason in report.left[name]
    assert [type(module) for module in net][:2] == kinds[:2]


def test_excluded_by_either_name():
    shared = nn.Linear(16, 16)
    net = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(16, 16)})
    report = gs.nn.skip_zeros(net, exclude=["b"])
    assert report.converted == ("c",) and report.left == {"a": "excluded"}


@pytest.mark.parametrize("computed", [weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5)])
def test_a_weight_that_a_hook_computes_is_followed(computed):
    layer, reference = computed(nn.Linear(16, 8)), computed(nn.Linear(16, 8))
    reference.load_state_dict(layer.state_dict())
    assert gs.nn.skip_zeros(nn.Sequential(layer)).converted == ("0",)
    x = torch.randn(4, 16).relu()
    for _ in range(3):
        for module in (layer, reference):
            module(x).square().sum().backward()
        for mine, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
            mine.data += 1.0
            theirs.data += 1.0


def test_what_others_would_notice_is_not_fused():
    def with_hook(method, at):
        net = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        getattr(net[at], method)(lambda *_: None)
        return net

    for method in ("register_forward_hook", "register_full_backward_hook"):
        for at in (0, 1):
            net = with_hook(method, at)
            report = gs.nn.skip_zeros(net)
            assert report.converted == ("0",) and report.fused == () and not net[0].relu, (method, at)
    assert gs.nn.skip_zeros(with_hook("register_forward_pre_hook", 0)).fused == ("1",)
    assert gs.nn.skip_zeros(with_hook("register_forward_pre_hook", 1)).fused == ()


def test_a_hook_on_the_layer_goes_on_seeing_its_output():
    net, seen = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output))
    gs.nn.skip_zeros(net)
    net(torch.randn(4, 16))
    assert (seen[0] < 0).any()


def test_a_layer_used_in_two_places_is_not_fused_but_a_shared_relu_may_be():
    shared, relu = nn.Linear(16, 16), nn.ReLU()
    net = nn.Sequential(shared, relu, shared, nn.Linear(16, 16), relu)
    expected, x = copy.deepcopy(net), torch.randn(4, 16)
    report = gs.nn.skip_zeros(net)
    assert report.converted == ("0", "3") and report.fused == ("4",) and net[1] is relu
    torch.testing.assert_close(net(x), expected(x))


class Backwards(nn.Sequential):
    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


@pytest.mark.parametrize("container", [Backwards, lambda *modules: nn.ModuleList(modules)])
def test_only_a_plain_sequential_says_what_follows_what(container):
    report = gs.nn.skip_zeros(container(nn.Linear(16, 16), nn.ReLU()))
    assert report.converted == ("0",) and report.fused == ()


def test_other_activations_stay():
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 16), nn.LeakyReLU())
    assert gs.nn.skip_zeros(net).fused == ()


def test_with_channels_last_left_convolutions_hand_it_on():
    net = chain()
    gs.nn.skip_zeros(net, channels_last=True)
    seen = []
    net[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(image())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 1
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions)


def test_bad_arguments_change_nothing():
    net = chain()
    before = [type(module) for module in net.modules()]
    for arguments, error, message in (
        ({"skip": "yes"}, ValueError, "skip must be .* 'yes'"),
        ({"exclude": ["2", "nowhere"]}, ValueError, "exclude must .* 'nowhere'"),
        ({"exclude": "2"}, TypeError, "exclude must be names"),
        ({"channels_last": 1}, TypeError, "channels_last must be a bool, got 1"),
    ):
        with pytest.raises(error, match=message):
            gs.nn.skip_zeros(net, **arguments)
    for function in (gs.nn.skip_zeros, gs.nn.unskip_zeros):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
            function([net])
    assert [type(module) for module in net.modules()] == before


def test_the_report_reads_well(caplog):
    net = chain()
    with caplog.at_level(logging.INFO, "gossamer"):
        report = gs.nn.skip_zeros(net)
    assert report.summary() in caplog.text
    assert report.summary().startswith(
        "4 of 5 layers can skip zeros, 2 with the ReLU after them; how many they meet is not"
    )
    before = str(report)
    for _ in range(6):
        net(image()).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = gs.nn.skip_zeros(linear := nn.Linear(16, 16))
        linear(torch.randn(2, 16))
    assert "torch's: autocast" in str(other)
    after = str(report)
    assert "left to torch\n0  3 input channels, fewer than 8" in before and "0  3 input" in after
    lines = after.splitlines()
    assert " ".join(lines[2].split()) == "layer zeros of x of dy forward by input by weight saved"
    row = next(line for line in lines if line.startswith("9.3"))
    assert "%" in row and row.split()[-1] in ("ms", "s")
    assert len(repr(report).splitlines()) == 1
    reasons = report.explain()
    assert all(f"\n{name}\n  forward: " in f"\n{reasons}" for name in report.converted)
    assert "of x nonzero" in reasons and "torch's own operator: autocast" in other.explain()


def test_stats_by_layer_and_pass():
    net = chain()
    report = gs.nn.skip_zeros(net)
    assert report.stats() == {name: {} for name in report.converted}
    for _ in range(8):
        net(image()).sum().backward()
    stats = report.stats()["2"]
    assert set(stats) == {"forward", "input", "weight"}
    assert 0.2 < stats["forward"]["density"]["x"] < 0.8  # behind a ReLU
    assert stats["input"]["density"]["dy"] < 0.8  # its own, fused
    assert all(sum(one["calls"].values()) == 8 for one in stats.values())
    assert report.saved == pytest.approx(sum(one["saved"] for site in report.stats().values() for one in site.values()))
    layer = nn.Linear(16, 16)
    other = gs.nn.skip_zeros(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, 16))
    assert other.stats()[""]["refused"] == ("autocast",)

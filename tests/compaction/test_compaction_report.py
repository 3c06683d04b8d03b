"""Law: compact removes no more than asked, rounds by keeping, refuses with numbers, and explains every group."""

from __future__ import annotations

import functools
import json
import warnings
from typing import Any

import pytest
import torch
from compaction_nets import NETS, MiniViT, Sequence
from torch import nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, zero_channels_
from gossamer.compaction.equality import difference
from gossamer.measure import Comparison, Row

X = torch.randn(2, 3, 8, 8)


def pruned(net: nn.Module, keep: dict[str, Any]) -> nn.Module:
    zero_channels_(net, ChannelGraph.build(net, X), keep)
    return net.eval()


def after(small: gs.compaction.Compact) -> dict[str, int]:
    return {name: widths["after"] for name, widths in small.report["channels"].items()}


@functools.cache
def five_dead() -> nn.Module:
    """Without 5 of the 8 channels of its first layer; what is compacted stays as it was."""
    torch.manual_seed(0)
    return pruned(Sequence(), {"conv1": torch.arange(8) < 3})


@pytest.mark.parametrize(("multiple", "widths"), [(None, (3, 5)), (1, (3, 5)), (2, (4, 6)), (4, (4, 8)), (16, (4, 8))])
def test_rounding_keeps_dead_channels_and_exactness(multiple: int | None, widths: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = pruned(Sequence(), {"conv1": torch.arange(8) < 3, "conv2": torch.arange(12) < 5})
    small = gs.compact(net, X, round_to=multiple, check_latency=False)
    assert after(small) == {"conv1": widths[0], "conv2": widths[1]}
    assert difference([net(X)], [small.model(X)]) <= 1e-5
    if widths[0] == 4:
        assert "[3] are dead but stay" in small.explain()


def test_rounding_keeps_the_largest_of_the_dead() -> None:
    torch.manual_seed(0)
    net = Sequence().eval()
    with torch.no_grad():
        net.conv2.weight[:, [1, 4, 6]] = 0  # unread, but their rows are not zero
        net.conv1.weight[[1, 4, 6]] *= torch.tensor([0.1, 3.0, 2.0])[:, None, None, None]
    small = gs.compact(net, X, round_to=3, check_latency=False)
    assert small.kept["conv1.weight"][0].tolist() == [0, 2, 3, 4, 5, 7]


def test_rounding_counts_positions_of_heads_not_heads() -> None:
    torch.manual_seed(0)
    net = pruned(MiniViT(), {"attn.qkv": torch.tensor([True, False, False, False])})
    small = gs.compact(net, X, round_to=6, check_latency=False)  # a head is 3 wide: two heads make 6
    assert after(small)["attn.qkv"] == 2


@pytest.mark.parametrize(
    ("channels", "positions", "multiple", "expected"),
    [
        (64, 1, 16, 16), (32, 1, 16, 16), (31, 1, 16, 8), (16, 1, 16, 8), (12, 1, 16, 4), (3, 1, 16, 1),
        (4, 32, 16, 1), (12, 8, 16, 2), (12, 24, 16, 2), (4, 3, 6, 2), (8, 1, 7, 3), (64, 1, 1, 1),
    ],
)  # fmt: skip
def test_steps_of_narrow_groups_and_wide_channels(channels: int, positions: int, multiple: int, expected: int) -> None:
    from gossamer.compaction.rounding import step

    member = gs.compaction.Member("w", 0, "writer", torch.arange(channels * positions).view(channels, positions))
    group = gs.compaction.ChannelGroup("g", channels, (member,), "inner", None, positions)
    assert step(group, multiple) == expected


def test_automatic_rounding_suits_the_machine() -> None:
    from gossamer.compaction.rounding import preferred_multiple

    capability = torch.backends.cpu.get_cpu_capability()
    assert preferred_multiple(torch.device("cpu")) in ((16, 8) if "512" in capability else (8,))
    assert preferred_multiple(torch.device("cuda")) == 16


def test_keep_limits_what_goes() -> None:
    torch.manual_seed(0)
    net = pruned(Sequence(), {"conv1": torch.arange(8) < 3, "conv2": torch.arange(12) < 5})
    asked = torch.tensor([True, True, True, False, True, True, True, True])
    small = gs.compact(net, X, keep={"conv1": asked}, round_to=None, check_latency=False)
    assert after(small) == {"conv1": 7, "conv2": 12}
    assert difference([net(X)], [small.model(X)]) <= 1e-5


def dying(net: nn.Module) -> nn.Module:
    return pruned(net, {"conv1": torch.arange(net.conv1.out_channels) % 3 > 0})


REASONS = [
    (lambda: Sequence().eval(), {}, "none of the 20 channels of 2 groups is dead"),
    (lambda: dying(Sequence()), {"round_to": 8, "keep": {}}, "3 dead channels stay, for widths in multiples of 8"),
    (lambda: dying(Sequence()), {"keep": {}}, "3 dead channels stay, by request"),
    (lambda: dying(Sequence((64, 12))), {"tolerance": 0.0}, "dead channels cannot go: conv1: removing it changes"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), {}, "no group of channels can shrink: 0: graph output"),
]


@pytest.mark.parametrize(("make", "options", "reason"), REASONS)
def test_nothing_removed_says_why(make: Any, options: dict, reason: str) -> None:
    torch.manual_seed(0)
    net = make()
    with pytest.warns(gs.compaction.CompactWarning, match="nothing was removed"):
        small = gs.compact(net, X, **{"round_to": None, **options})
    assert reason in small.refused and small.refused in small.explain()
    assert small.kept == {} and small.report["latency"] is None and torch.equal(small.model(X), net(X))
    assert small.report["parameters"]["before"] == small.report["parameters"]["after"]


def test_a_whole_dead_group_keeps_one_channel() -> None:
    torch.manual_seed(0)
    net = Sequence().eval()
    with torch.no_grad():
        net.conv2.weight.zero_()
    small = gs.compact(net, X, round_to=None, check_latency=False)
    assert after(small)["conv1"] == 1
    assert difference([net(X)], [small.model(X)]) <= 1e-5


def timing(ratio: float, spread: float) -> Comparison:
    def row(name: str, value: float) -> Row:
        return Row(name, 1e-3 / value, 1e-3, 1e-3, 1e-3, 1e-3, value, value - spread, value + spread, 11)

    return Comparison("original", (row("original", 1.0), row("compact", ratio)), row("original (control)", 1.0))


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.5,), "faster"), ((0.8, 0.8), "slower"), ((0.8, 1.5, 1.5), "faster"), ((0.8, 1.5, 0.8), "slower"),
        ((1.0, 1.0), "inconclusive"), ((1.0, 1.5), "faster"), ((0.8, 1.0, 1.0), "inconclusive"),
        ((0.8, 1.0, 1.5), "inconclusive"),
    ],
)  # fmt: skip
def test_one_slow_run_does_not_refuse(ratios: Any, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, runs = five_dead(), list(ratios)
    monkeypatch.setattr(gs.measure, "interleave", lambda *_, **__: timing(runs.pop(0), 0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = gs.compact(net, X, round_to=None)
    assert small.report["latency"]["verdict"] == verdict and not runs
    assert (small.refused is not None) == (verdict == "slower")


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"),
    [
        (0.8, 0.05, "slower"),
        (0.9, 0.04, "slower"),
        (0.9, 0.06, "inconclusive"),  # the quartiles overlap those of the control
        (1.0, 0.05, "inconclusive"),
        (1.04, 0.06, "inconclusive"),
        (1.04, 0.02, "faster"),
        (2.0, 0.5, "faster"),
        (0.6, 0.5, "inconclusive"),
    ],
)
def test_refuses_only_what_is_clearly_slower(
    ratio: float, spread: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = five_dead()
    monkeypatch.setattr(gs.measure, "interleave", lambda *_, **__: timing(ratio, spread))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        small = gs.compact(net, X, optimizer=optimizer, round_to=None)
    said = "".join(str(item.message) for item in raised if item.category is gs.compaction.CompactWarning)
    assert small.report["latency"]["verdict"] == verdict
    if verdict == "slower":
        assert "the same model against itself gives" in small.refused and f"({ratio:.2f}x" in small.refused
        assert small.refused in said and small.refused in small.explain()
        assert small.kept == {} and after(small)["conv1"] == 8
        assert torch.equal(small.model(X), net(X)) and small.model is not net
        assert small.optimizer.param_groups[0]["params"][0] is small.model.conv1.weight
    else:
        assert small.refused is None and after(small)["conv1"] == 3
        assert ("no faster that could be told" in said) == (verdict == "inconclusive")
        assert ("no faster that could be told" in small.explain()) == (verdict == "inconclusive")
        assert ("\nfaster: " in f"\n{small.explain()}") == (verdict == "faster")
    assert small.report["latency"]["rows"][1]["ratio"] == ratio


def test_the_real_clock_runs() -> None:
    torch.manual_seed(0)
    net = pruned(Sequence((64, 64)), {"conv1": torch.arange(64) < 4, "conv2": torch.arange(64) < 4})
    small = gs.compact(net, torch.randn(8, 3, 32, 32), round_to=None)
    assert {row["name"] for row in small.report["latency"]["rows"]} == {"original", "compact"}
    assert small.report["latency"]["verdict"] in ("faster", "slower", "inconclusive")


def test_report_is_plain_json_and_counts() -> None:
    torch.manual_seed(0)
    net = pruned(Sequence(), {"conv1": torch.arange(8) < 3, "conv2": torch.arange(12) < 5})
    small = gs.compact(net, X, round_to=None, check_latency=False)
    report = json.loads(json.dumps(small.report))
    assert report["parameters"]["after"] == sum(p.numel() for p in small.model.parameters())
    assert report["parameters"]["before"] == sum(p.numel() for p in net.parameters())
    assert report["bytes"]["after"] < report["bytes"]["before"]
    pixels = 2 * 8 * 8
    flops = 2 * (pixels * 9 * (3 * 3 + 3 * 5) + 2 * 5 * 5)
    assert report["flops"]["after"] == flops
    assert 0 <= report["error"] <= 1e-5


def test_explain_is_a_receipt() -> None:
    torch.manual_seed(0)
    net = pruned(Sequence(), {"conv1": torch.arange(8) < 3})
    text = gs.compact(net, X, round_to=None, check_latency=False).explain()
    for line in (
        "conv1: 8 -> 3 channels, inner, removed [3, 4, 5, 6, 7]",
        "    made by    conv1.weight axis 0 loses 5 of 8",
        "    scaled by  bn1.weight axis 0 loses 5 of 8",
        "    counted in bn1.running_mean axis 0 loses 5 of 8",
        "    read by    conv2.weight axis 1 loses 5 of 8",
        "conv2: 12 channels, inner, none removed",
        "fc: 5 channels stay: graph output",
        "input of conv1: 3 channels stay: graph input x",
    ):
        assert line in text.splitlines(), text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    """Verified in float32, where rounding cannot hide a mistake."""
    torch.manual_seed(0)
    net = pruned(Sequence(), {"conv1": torch.arange(8) < 3, "conv2": torch.arange(12) < 5}).to(dtype)
    small = gs.compact(net, X.to(dtype), round_to=None, check_latency=False)
    assert after(small) == {"conv1": 3, "conv2": 5} and small.model.conv1.weight.dtype == dtype


def test_inputs_may_be_a_tuple_or_named() -> None:
    torch.manual_seed(0)
    for inputs in ((X,), {"x": X}, [X]):
        net = pruned(Sequence(), {"conv1": torch.arange(8) < 3})
        assert after(gs.compact(net, inputs, round_to=None, check_latency=False))["conv1"] == 3


def test_tolerance_decides() -> None:
    """An impossible tolerance keeps everything: summation order alone exceeds it."""
    torch.manual_seed(1)
    net = pruned(Sequence((32, 32)), {"conv1": torch.arange(32) % 3 > 0, "conv2": torch.arange(32) % 3 > 0})
    strict = gs.compact(net, X, round_to=None, check_latency=False, tolerance=0.0)
    loose = gs.compact(net, X, round_to=None, check_latency=False)
    assert loose.report["error"] > 0 and set(after(loose).values()) == {21}
    assert strict.unfit and "changes the outputs by" in strict.explain()
    assert torch.equal(strict.model(X), net(X))


def test_the_table_explains_itself() -> None:
    for net in NETS.values():
        text = ChannelGraph.build(net.build().double(), net.inputs()).explain()
        assert all(name in text for name in net.groups)

"""Law: forward hooks that only watch have no part in what is captured, and see no fake tensors; the others stay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import CaptureError, ChannelGraph, shrink_, zero_channels_
from gossamer.compaction.capture import capture

X = torch.randn(4, 8)
ROUTES = ["export", "fx"]

pytestmark = pytest.mark.filterwarnings("ignore::gossamer.compaction.verdict.CompactWarning")  # noise is likely here


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        net[2].weight[:, 9:] = 0
    return net.eval()


def summing() -> Callable[..., Any]:
    total = torch.zeros(4, 32)
    return lambda module, args, y: (total.add_(y.detach()), None)[1]


def branching(module: nn.Module, args: Any, y: Tensor) -> None:
    if y.mean().item() > 1e9:
        raise OverflowError


def with_options(module: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
    assert type(y) is Tensor and kwargs == {} and y.tolist()


class Averaging:
    """A hook that is an object."""

    def __call__(self, module: nn.Module, args: Any, y: Tensor) -> None:
        y.mean().item()


WATCHERS: dict[str, tuple[Callable[[], Callable[..., Any]], dict[str, bool]]] = {
    "into a tensor": (summing, {}),
    "by value": (lambda: branching, {}),
    "partial": (lambda: functools.partial(branching), {}),
    "object": (Averaging, {}),
    "options": (lambda: with_options, {"with_kwargs": True, "always_call": True}),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", WATCHERS)
def test_a_watching_hook_changes_nothing(name: str, route: str) -> None:
    make, options = WATCHERS[name]
    net, order = plain(), []
    first = net[1].register_forward_hook(lambda *_: order.append("first"))
    second = net[1].register_forward_hook(make(), **options)
    hooks, held = net[1]._forward_hooks, list(net[1]._forward_hooks.items())
    small = gs.compact(net, X, round_to=None, route=route)
    assert small.model[0].out_features == 9
    assert net[1]._forward_hooks is hooks and list(hooks.items()) == held
    assert list(small.model[1]._forward_hooks) == [first.id, second.id]
    second.remove(), first.remove()
    assert not hooks


@pytest.mark.parametrize("route", ROUTES)
def test_a_watching_hook_sees_one_real_call(route: str) -> None:
    net, seen = plain(), []
    net[1].register_forward_hook(lambda module, args, y: seen.append(y))
    gs.compact(net, X, round_to=None, route=route)
    assert [type(y) for y in seen] == [Tensor] and torch.equal(seen[0], net[:2](X))


def test_a_graph_knows_the_hooks_when_the_network_is_shrunk() -> None:
    net = plain()
    net[1].register_forward_hook(summing())
    graph = ChannelGraph.build(net, X)
    zero_channels_(net, graph, {"0": torch.arange(32) < 9})
    shrink_(net, graph, {"0": torch.arange(32) < 9})  # its sum of 32 channels would not take 9
    assert net[0].out_features == 9


class Tapped(nn.Module):
    """Its head reads what a hook has kept of the body, in one of several places."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.head, self.how = nn.Linear(8, 32), nn.Linear(32, 3), how
        self.kept: Any = None
        self.all: list[Tensor] = []
        self.body.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, y: Tensor) -> None:
        self.kept = y.relu() if self.how == "derived" else y
        self.all.append(y)

    def forward(self, x: Tensor) -> Tensor:
        self.all.clear()
        self.body(x)
        return self.head(self.all[-1] if self.how == "list" else self.kept)


class Counted(nn.Linear):
    """A hook keeps a mean of every channel in a buffer, which must shrink along."""

    def __init__(self) -> None:
        super().__init__(8, 32)
        self.register_buffer("mean", torch.zeros(32))
        self.register_forward_hook(lambda module, args, y: (module.mean.add_(y.detach().mean(0)), None)[1])


def doubling(module: nn.Module, args: Any, y: Tensor) -> Tensor:
    return y * 2


def negated(module: nn.Module, args: Any, y: Tensor) -> None:
    y.neg_()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("how", ["as it is", "derived", "list"])
@pytest.mark.parametrize("ran", [False, True])
def test_a_hook_that_feeds_the_forward_stays(how: str, ran: bool, route: str) -> None:
    torch.manual_seed(0)
    net = Tapped(how).eval()
    if ran:
        net(X)
    graph = ChannelGraph.build(net, X, route)
    assert [(group.name, group.channels) for group in graph.removable] == [("body", 32)]
    assert not any(graph.flow.capture.watches.values())


@pytest.mark.parametrize("hook", [doubling, negated])
def test_a_hook_that_changes_the_output_stays(hook: Callable[..., Any]) -> None:
    net = plain()
    net[1].register_forward_hook(hook)
    small = gs.compact(net, X, round_to=None, check_latency=False)
    assert small.model[0].out_features == 9
    torch.testing.assert_close(small.model(X), net(X))


def test_a_hook_that_writes_to_a_buffer_stays() -> None:
    net = plain()
    net[0] = Counted()
    small = gs.compact(net.eval(), X, round_to=None, check_latency=False)
    assert small.model[0].mean.shape == (9,) and small.model(X).shape == (4, 3)


@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_an_error_names_the_hook_that_stays(route: str) -> None:
    def gate(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y if y.mean().item() > 1e9 else y * 2

    net = plain()
    net[1].register_forward_hook(gate)
    held = list(net[1]._forward_hooks.items())
    with pytest.raises(CaptureError, match=r"it fails in the hook \S*gate of '1'"):
        capture(net, X, route=route)
    assert list(net[1]._forward_hooks.items()) == held
    net = plain()
    net[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(CaptureError, match=r"ZeroDivisionError.*it fails in the hook \S*lambda> of '1'"):
        capture(net, X, route=route)


class Moody:
    def __call__(self, module: nn.Module, args: Any) -> Any:
        return None if args[0].sum().item() > 1e9 else (args[0] * 2,)


def test_an_error_names_an_object_before_the_forward() -> None:
    net = plain()
    net[1].register_forward_pre_hook(Moody())
    with pytest.raises(CaptureError, match="it fails in the hook Moody of '1'"):
        capture(net, X)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_hooks_before_the_forward_stay() -> None:
    net = plain()
    nn.utils.weight_norm(net[0])
    nn.utils.spectral_norm(net[2])
    net[1].register_forward_hook(summing())
    graph = ChannelGraph.build(net, X)
    called = {str(node.target).split(".")[1] for node in graph.flow.capture.calls}
    assert "_weight_norm_interface" in called or "_weight_norm" in called, called


def test_a_forward_with_an_inference_mode_of_its_own() -> None:
    net, seen = plain(), []
    net[0].forward = torch.inference_mode()(net[0].forward)
    net[0].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    with torch.no_grad():
        net(X)
    ChannelGraph.build(net, X)
    assert seen == [(4, 32)] * 2

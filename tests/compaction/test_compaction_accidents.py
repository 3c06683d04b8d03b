"""Law: what is removable does not depend on which sizes of the example happen to equal which attributes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, StructureError, shrink_, zero_channels_


class Heads(nn.Module):
    """Attention whose code knows every size by an attribute, in two ways of writing it."""

    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.inner, self.h, self.size, self.packed = width, heads, width // heads, packed
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        if self.packed:
            q, k, v = self.qkv(x).view(n, s, 3, self.h, self.size).permute(2, 0, 3, 1, 4)
        else:
            parts = self.qkv(x).split(self.inner, -1)
            q, k, v = (part.view(n, s, self.h, self.size).transpose(1, 2) for part in parts)
        y = ((q @ k.transpose(-2, -1)) * self.size**-0.5).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).reshape(n, s, self.inner)))


class Images(nn.Module):
    """Splits by numbers, expands and flattens by numbers, shuffles groups, and adds a row made for its width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c, self.parts, self.g, self.side = c, [c, c, 2 * c], 4, 2
        self.a, self.b, self.d = nn.Conv2d(3, 4 * c, 1), nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, 2 * c, 1)
        self.gate, self.mix = nn.Linear(2 * c, 2 * c), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=4)
        self.flat = nn.Linear(2 * c * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        p, q, r = self.a(x).relu().split(self.parts, 1)
        y = F.silu(self.b(p) + self.d(q) + r)
        n, _, h, w = y.shape
        y = y * self.gate(y.mean((2, 3))).sigmoid().view(n, 2 * self.c, 1, 1).expand(n, 2 * self.c, h, w)
        y = y + torch.zeros(2 * self.c, dtype=x.dtype)[:, None, None]
        y = y.view(n, self.g, 2 * self.c // self.g, h, w).transpose(1, 2).reshape(n, 2 * self.c, h, w)
        y = F.adaptive_avg_pool2d(self.mix(y).relu(), self.side)
        return self.flat(y.reshape(-1, 2 * self.c * self.side * self.side))


def tokens(width: int, *sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(n, s, width) for n, s in sizes]


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(n, 3, side, side) for n, side in sizes]


# (the network, examples: the first collides with nothing, the next ones with most)
NETS: dict[str, tuple[Callable[[], nn.Module], list[Tensor]]] = {
    "packed heads": (lambda: Heads(32, 4, True), tokens(32, (3, 5), (4, 8), (8, 8), (3, 32), (1, 8), (32, 4))),
    "split heads": (lambda: Heads(32, 4, False), tokens(32, (3, 5), (8, 4), (8, 8), (3, 32), (1, 8), (32, 4))),
    "as many heads as their size": (lambda: Heads(16, 4, True), tokens(16, (3, 5), (4, 4), (16, 16), (1, 1))),
    "images": (lambda: Images(8), pictures((3, 5), (8, 8), (3, 8), (16, 5), (4, 4), (1, 16), (32, 8))),
}


def half_dead(net: nn.Module, x: Tensor) -> nn.Module:
    graph = ChannelGraph.build(net, x)
    zero_channels_(net, graph, {group.name: torch.arange(group.channels) % 2 == 0 for group in graph.removable})
    return net.eval()


@pytest.mark.parametrize("count", [2, pytest.param(None, marks=pytest.mark.slow)], ids=["two", "all"])
@pytest.mark.parametrize("name", NETS)
def test_every_example_removes_the_same(name: str, count: int | None) -> None:
    make, examples = NETS[name]
    examples = examples[:count]
    found = []
    for x in examples:
        torch.manual_seed(0)
        net = half_dead(make(), x)
        small = gs.compact(net, x, round_to=None, check_latency=False)
        assert small.refused is None and not small.unfit, small.explain()
        torch.testing.assert_close(small.model(examples[0]), net(examples[0]))
        found.append({key: tuple(value.shape) for key, value in small.model.state_dict().items()})
    assert all(shapes == found[0] for shapes in found)
    assert sum(map(len, found[0].values())) and found[0] != {k: tuple(v.shape) for k, v in make().state_dict().items()}


class Misleading(nn.Module):
    """Four attributes of one value: two follow the channels, one is a number of pixels, one is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.n_hidden, self.n_pixels, self.n_unused = 6, 6, 6, 6
        self.a, self.b, self.c = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 6, 1), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu().view(-1, self.width, self.n_pixels)
        return self.c(self.b(y).reshape(-1, self.n_hidden * self.n_pixels))


def test_where_the_code_fails_says_which_attribute_to_doubt() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6)
    net = Misleading()
    graph = ChannelGraph.build(net, x)
    kept = shrink_(net, graph, {"a": torch.arange(6) < 4, "b": torch.arange(6) < 4})
    assert (net.width, net.n_hidden, net.n_pixels) == (4, 4, 6) and net(x).shape == (2, 2)
    assert "n_pixels" not in kept.attributes[""]


class Stubborn(nn.Module):
    """The width lives where nobody looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"c": 6}
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).view(-1, self.sizes["c"])).relu())


def test_what_no_attribute_explains_is_put_back_and_named() -> None:
    net, x = Stubborn(), torch.randn(3, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(StructureError, match=r"does not follow smaller tensors: its forward fails.*be multiplied"):
        shrink_(net, ChannelGraph.build(net, x), {"a": torch.arange(6) < 4})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    small = gs.compact(half_dead(net, x), x, round_to=None, check_latency=False)
    assert small.report["channels"]["b"]["after"] == 4 and "does not follow smaller tensors" in small.unfit["a"]


def test_training_goes_on_with_what_cannot_be_cut(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the code only fails later: the trial at the start finds nothing."""
    torch.manual_seed(0)
    monkeypatch.setattr(gs.training.channels, "culprits", lambda *arguments: {})
    net, x = Stubborn(), torch.randn(3, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    method = gs.training.Chase(
        net, optimizer, density=0.5, channel_sparsity=0.5, total_steps=12, explore_every=3, channel_every=3,
        min_width=0.9, compact_every=1, example_inputs=x, init="random",
    )  # fmt: skip
    for _ in range(12):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    alive = {name: int(left.sum()) for name, left in method.channels().items()}
    assert alive["a"] < 6 and alive["b"] < 8
    assert net.a.out_features == 6 and net.b.out_features == alive["b"] and net.c.in_features == alive["b"]
    assert int((net.a.weight != 0).any(1).sum()) <= alive["a"]  # masked still
    assert method.removed is not None and "does not follow smaller tensors" in method.removed.stuck["a"]
    assert caplog.text.count("dead channels of a stay, masked") >= 1

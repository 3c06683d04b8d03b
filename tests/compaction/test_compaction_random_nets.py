"""Law: on networks nobody designed, what `dead` reports may go, and what `shrink_` accepts is exact.

Random programs over image tensors [n, c, 4, 4], sparse random weights. `shrink_` proves structure only and `dead` reads
values only, so neither sees the outputs this test compares.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph, StructureError, dead, shrink_, values
from gossamer.compaction.equality import difference


class RandomNet(nn.Module):
    """Each step takes earlier tensors by number and appends one; widths are multiples of 4."""

    def __init__(self, seed: int, steps: int = 9) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.layers, self.program = nn.ModuleDict(), []
        widths = [4]
        for number in range(steps):
            name = f"s{number}"
            pick = rng.randrange(max(0, len(widths) - 4), len(widths))
            width = widths[pick]
            same = [i for i, other in enumerate(widths) if other == width]
            kind = rng.choice(KINDS)
            if kind == "conv":
                out = rng.choice([4, 8, 12])
                padding = rng.choice([0, 1])
                layer: nn.Module = nn.Conv2d(width, out, 1 + 2 * padding, padding=padding, bias=rng.random() < 0.5)
            elif kind in ("grouped", "transposed"):
                out, groups = rng.choice([4, 8]), rng.choice([1, 2, 4])
                cls = nn.Conv2d if kind == "grouped" else nn.ConvTranspose2d
                layer = cls(width, out, 3, padding=1, groups=groups)
            elif kind == "depthwise":
                out, layer = width, nn.Conv2d(width, width, 3, padding=1, groups=width)
            elif kind == "bn":
                out, layer = width, nn.BatchNorm2d(width)
            elif kind == "gn":
                out, layer = width, nn.GroupNorm(2, width)
            elif kind == "prelu":
                out, layer = width, nn.PReLU(width)
            elif kind == "linear":
                out = rng.choice([4, 8])
                layer = nn.Linear(width, out)
            else:
                layer = nn.Identity()
                out = {"cat": width + widths[-1], "half": width // 2, "twice": 2 * width}.get(kind, width)
                if out % 4:
                    kind, out = "relu", width
            self.layers[name] = layer
            second = rng.choice(same) if kind in TWO else pick
            self.program.append((kind, name, pick, second, len(widths) - 1 if kind == "cat" else pick))
            widths.append(out)
        needed = {steps}  # a step nobody reads is not in the captured graph, but would run on the wrong shapes
        for number in reversed(range(steps)):
            if number + 1 in needed:
                needed.update(self.program[number][2:])
        self.needed = needed
        self.head = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = [x.clone()]
        for number, (kind, name, first, second, last) in enumerate(self.program, start=1):
            used = number in self.needed
            values.append(STEPS[kind](self.layers[name], values[first], values[second], values[last]) if used else None)
        return self.head(values[-1]).sum((2, 3))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


STEPS = {
    "relu": lambda f, a, b, c: F.relu(a), "in place": lambda f, a, b, c: a.mul_(0.5).relu_(),
    "sigmoid": lambda f, a, b, c: torch.sigmoid(a),
    "silu": lambda f, a, b, c: F.silu(a), "add": lambda f, a, b, c: a + b, "mul": lambda f, a, b, c: a * b,
    "sub": lambda f, a, b, c: a - 2 * b, "cat": lambda f, a, b, c: torch.cat([a, c], 1),
    "twice": lambda f, a, b, c: torch.cat([a, a], 1), "half": lambda f, a, b, c: a.chunk(2, 1)[0] + a.chunk(2, 1)[1],
    "shuffle": lambda f, a, b, c: shuffle(a), "pool": lambda f, a, b, c: a * F.adaptive_avg_pool2d(b, 1),
    "shift": lambda f, a, b, c: a + 0.5, "gate": lambda f, a, b, c: torch.where(a > b, a, b),
    "softmax": lambda f, a, b, c: a.flatten(2).softmax(-1).view_as(a),
    "linear": lambda f, a, b, c: f(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    **dict.fromkeys(
        ("conv", "grouped", "transposed", "depthwise", "bn", "gn", "prelu"), lambda f, a, b, c: f(a)
    ),
}  # fmt: skip
TWO = {"add", "mul", "sub", "pool", "gate"}
# Layers that make and read channels come up more often than the rest.
KINDS = [*STEPS, *["conv"] * 5, *["bn"] * 2, "linear", "linear", "grouped"]


def sparse(net: RandomNet, seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            mask = torch.rand(parameter.shape, generator=generator) < density
            if parameter.dim() > 1:  # whole rows and columns die, as they do in sparse training
                for axis in (0, 1):
                    alive = torch.rand(parameter.shape[axis], generator=generator) < 0.7
                    mask &= alive.view([-1 if i == axis else 1 for i in range(parameter.dim())])
            parameter.copy_(values * mask)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
                buffer.mul_(torch.rand(buffer.shape, generator=generator) < 0.5)


def check(seed: int, route: str) -> tuple[int, int]:
    net = RandomNet(seed).double().eval()
    sparse(net, seed, 0.5)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph = ChannelGraph.build(net, x, route)
    found = dead(graph, net)
    keep = {name: ~mask for name, mask in found.items() if bool(mask.any())}
    small = copy.deepcopy(net)
    try:
        shrink_(small, graph, keep)
    except StructureError:
        return 0, 1
    fresh = torch.randn(3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    expected = net(fresh)
    if bool(expected.isfinite().all()):
        assert difference([expected], [small(fresh)]) <= 1e-10, net.program
    return sum(int(mask.sum()) for mask in found.values()), 0


@pytest.mark.parametrize("block", range(4))
def test_random_networks(block: int) -> None:
    results = [check(seed, "export" if seed % 4 == 1 else "fx") for seed in range(10 * block, 10 * (block + 1))]
    assert sum(removed for removed, _ in results) > 30, "too few dead channels to prove anything"
    assert not any(refused for _, refused in results)


@pytest.mark.slow
def test_many_random_networks() -> None:
    results = [check(seed, "fx") for seed in range(1000, 1300)]
    assert sum(refused for _, refused in results) <= 3


MUTANTS = {
    "BatchNorm keeps zero": ("native_batch_norm", lambda run, node, args: (run.of(args["input"]),) * 3),
    "sigmoid keeps zero": ("sigmoid", lambda run, node, args: run.of(args["self"])),
    "0.5 is added to nothing": ("add", lambda run, node, args: run.of(args["self"])),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(values.HANDLERS, *MUTANTS[name])
    with pytest.raises(AssertionError):
        for seed in (0, 10, 27):  # of the forty, those that notice
            check(seed, "fx")

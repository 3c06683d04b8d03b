"""Law: the user's model is borrowed: wrappers are seen through, nothing is left in it, what comes back trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import gossamer as gs
from gossamer import wrappers
from gossamer.compaction import ChannelGraph, dead, shrink_, zero_channels_
from gossamer.compaction.store import save

X = torch.randn(4, 8)


def plain() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Sequential(nn.BatchNorm1d(32), nn.ReLU()), nn.Linear(32, 3))
    with torch.no_grad():
        net[2].weight[:, 9:] = 0
    return net.eval()


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    net[0].compile(backend="eager")
    return net


def nested(net: nn.Module) -> nn.Module:
    net[1] = nn.DataParallel(net[1])
    net[2] = torch.compile(net[2], backend="eager")
    return torch.compile(AveragedModel(net), backend="eager")


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DistributedDataParallel": DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda net: torch.compile(net, backend="eager"),
    "module.compile": compiled_in_place,
    "AveragedModel": AveragedModel,
    "nested": nested,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_seen_through(name: str, tmp_path: Path, process_group: None) -> None:
    bare, net = plain(), WRAPPED[name](plain())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    graph, expected = ChannelGraph.build(net, X), ChannelGraph.build(bare, X)
    assert [group.name for group in graph.groups] == [group.name for group in expected.groups]
    assert dead(graph, net)["0"].tolist() == dead(expected, bare)["0"].tolist()
    small = gs.compact(net, X, optimizer=optimizer, round_to=None, check_latency=False)
    assert {key: value.shape for key, value in small.model.state_dict().items()} == {
        key: value.shape
        for key, value in gs.compact(bare, X, round_to=None, check_latency=False).model.state_dict().items()
    }
    torch.testing.assert_close(small.model(X), bare(X))
    assert small.optimizer.param_groups[0]["params"][0] is small.model[0].weight
    again = gs.load_compact(plain, small.save(tmp_path / "saved"))
    assert type(again) is nn.Sequential and torch.equal(again(X), small.model(X))
    other = gs.load_compact(lambda: WRAPPED[name](plain()), tmp_path / "saved")
    assert torch.equal(other(X), small.model(X))
    zero_channels_(net, graph, {"0": torch.arange(32) < 3})
    assert int(torch.count_nonzero(wrappers.unwrap(net)[0].weight)) == 3 * 8
    assert type(net) is type(WRAPPED[name](plain()))  # what the user had is still what it was


def test_names_of_a_nested_wrapper_stay_those_of_the_model(tmp_path: Path) -> None:
    net = plain()
    net[2] = torch.compile(net[2], backend="eager")
    graph = ChannelGraph.build(net, X)
    assert {m.tensor for m in graph.group("0").members} <= set(net.state_dict())
    kept = shrink_(net, graph, {"0": torch.arange(32) < 9})
    assert net[2].weight.shape == (3, 9) and "2._orig_mod.weight" in kept and net(X).shape == (4, 3)
    assert torch.equal(gs.load_compact(plain, save(net, tmp_path))(X), net(X))


def test_fixed_buckets_and_shards_are_refused(process_group: None) -> None:
    net = DistributedDataParallel(plain())
    with pytest.raises(TypeError, match="DistributedDataParallel keeps the first shapes"):
        shrink_(net, ChannelGraph.build(net, X), {"0": torch.arange(32) < 9})
    sharded = type("FullyShardedDataParallel", (nn.Sequential,), {})(nn.Linear(8, 4))
    for action in (lambda: ChannelGraph.build(sharded, X), lambda: gs.compact(sharded, X)):
        with pytest.raises(TypeError, match=r"FullyShardedDataParallel \(at 'the root'\) has cut the parameters"):
            action()


class Caching(nn.Module):
    """Keeps a grid per shape, a list, a counter, and the features of its last call, as detection heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.shape: Any = None
        self.grid: Any = None
        self.table: dict[int, Tensor] = {}
        self.seen: list[int] = []
        self.last: Any = None
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("rows", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        self.calls += 1
        self.last = y
        if self.training:
            return y
        if self.shape != y.shape:
            self.shape = y.shape
            self.grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in y.shape[2:]], indexing="ij")).sum(
                0
            )
        if y.shape[-1] not in self.table:
            self.table[y.shape[-1]] = torch.arange(float(y.shape[-1]))
            self.seen.append(y.shape[-1])
        if self.rows is None:
            self.rows = torch.ones(y.shape[-1])
            self.register_buffer("columns", torch.ones(y.shape[-1], 1), persistent=False)
        return (y * self.grid * self.columns + self.table[y.shape[-1]] * self.rows).mean((2, 3))


@pytest.mark.parametrize(("warm", "route"), [(False, "export"), (True, "export"), (False, "fx"), (True, "fx")])
def test_state_built_in_a_forward_is_the_same_program_both_times(warm: bool, route: str) -> None:
    torch.manual_seed(0)
    net, x = Caching(), torch.randn(2, 3, 8, 8)
    if warm:
        net.eval()(x), net.train()(x)
    before = copy.copy(vars(net))
    table, seen, calls = dict(net.table), list(net.seen), net.calls.clone()
    random = torch.get_rng_state()
    graph = ChannelGraph.build(net, x, route)
    zero_channels_(net, graph, {"a": torch.arange(24) < 7})
    small = gs.compact(net, x, round_to=None, check_latency=False, route=route)
    assert small.model.a.out_channels == 7 and small.graph.route == route
    assert vars(net).keys() == before.keys() and all(vars(net)[key] is before[key] for key in before)
    assert net.table == table and net.seen == seen and torch.equal(net.calls, calls)
    assert torch.equal(random, torch.get_rng_state())
    assert [name for name, _ in net.named_buffers()] == (["calls", "rows", "columns"] if warm else ["calls"])
    assert torch.equal(small.model.eval()(x).isnan(), net.eval()(x).isnan())
    torch.testing.assert_close(small.model(x), net(x))


class Scaled(nn.Module):
    """A constant made from the width: it would differ in the smaller network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 8), nn.Linear(8, 2), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.scale is None:
            self.scale = torch.tensor(y.shape[-1] ** -0.5)
        return self.b(y * self.scale)


def test_a_kept_constant_that_depends_on_the_width_is_noticed() -> None:
    net, x = Scaled(), torch.randn(3, 4)
    with pytest.raises(gs.compaction.StructureError, match="constant 0 of its forward"):
        shrink_(net, ChannelGraph.build(net, x), {"a": torch.arange(8) < 5})


def ordinary(net: nn.Module) -> bool:
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers(), *kept))


@pytest.mark.parametrize("born", [False, True])
def test_what_was_made_under_inference_mode_trains(born: bool, tmp_path: Path) -> None:
    """`born`: the model itself was made there, too, and has run there."""
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        with torch.inference_mode(born):
            torch.manual_seed(0)
            net = Caching()
        net.eval()(x.clone() if born else x), net.train()
        graph = ChannelGraph.build(net, x.clone())
        if not born:
            zero_channels_(net, graph, {"a": torch.arange(24) < 7})
            assert dead(graph, net)["a"].sum() == 17
        else:
            net.b.weight[:, 7:] = 0
        small = gs.compact(net, x.clone(), round_to=None)
        small.save(tmp_path)
        again = gs.load_compact(Caching, tmp_path)
    assert small.model.a.out_channels == again.a.out_channels == 7
    for found in (small.model, again):
        assert ordinary(found)
        optimizer = torch.optim.SGD(found.parameters(), 0.1)
        found.train()(x).square().mean().backward()
        optimizer.step()
    if not born:
        shrink_(net, graph, {"a": torch.arange(24) < 7})
        net.train()(x).square().mean().backward()
        assert not any(tensor.is_inference() for tensor in (*net.parameters(), net.calls))

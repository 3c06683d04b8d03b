"""Law: a run in wrappers of a network and its optimizer is the run inside them; what is not understood is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import gossamer as gs
from gossamer.wrappers import unwrap_optimizer

STEPS = 8
X = torch.randn(STEPS, 8, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 5


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


def _chase(model: nn.Module, optimizer: Any) -> gs.training.Chase:
    every = {"explore_every": 2, "channel_every": 2}
    return gs.training.Chase(model, optimizer, density=0.3, channel_sparsity=0.5, total_steps=STEPS, **every)


def _train(model: nn.Module, optimizer: Any, backward: Callable = torch.Tensor.backward) -> None:
    for x in X:
        backward(nn.functional.cross_entropy(model(x), Y))
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def accelerate() -> Iterator[Any]:
    found = pytest.importorskip("accelerate", reason="accelerate is not installed")
    yield found
    found.state.AcceleratorState._reset_state(True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(accelerate: Any, precision: str) -> None:
    """Made before and after `prepare`, with gradients of two batches a step: the same run."""
    found = []
    for before in (False, True):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=True, gradient_accumulation_steps=2)
        model = _network()
        optimizer = AdamW(model.parameters(), lr=1e-2)
        method = _chase(model, optimizer) if before else None
        net, wrapped = accelerator.prepare(model, optimizer)
        method = method or _chase(net, wrapped)
        assert method.optimizer is optimizer and type(wrapped).__name__ == "AcceleratedOptimizer"
        for x in (*X, *X):
            with accelerator.accumulate(net):
                accelerator.backward(nn.functional.cross_entropy(net(x), Y))
                wrapped.step()
                wrapped.zero_grad()
        assert method.step == STEPS and method.nnz() == round(0.3 * sum(method.sizes.values()))
        found.append((net, model, wrapped, method))
    (net, model, wrapped, method), (_, other, *_) = found
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    small = gs.compact(net, X[0], optimizer=wrapped, check_latency=False, round_to=1)
    left = {name: int(alive.sum()) for name, alive in method.channels().items()}
    assert {name: counts["after"] for name, counts in small.report["channels"].items()} == left
    assert isinstance(small.optimizer, AdamW) and small.model(X[0]).dtype is torch.float32
    # the compact network trains on, by itself, in the same precision
    plain = gs.compact(accelerator.unwrap_model(net, keep_fp32_wrapper=False), X[0], check_latency=False, round_to=1)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), small.model.parameters(), strict=True))
    _train(small.model, small.optimizer)
    assert not torch.equal(small.model[0].weight, plain.model[0].weight)


def test_accelerate_saves_and_goes_on(accelerate: Any, tmp_path: Any) -> None:
    def prepared() -> tuple[Any, ...]:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        model = _network()
        net, optimizer = accelerator.prepare(model, AdamW(model.parameters(), lr=1e-2))
        method = _chase(net, optimizer)
        accelerator.register_for_checkpointing(method)
        return accelerator, net, optimizer, method

    accelerator, net, optimizer, _ = prepared()
    for step, x in enumerate(X):
        if step == STEPS // 2:
            accelerator.save_state(str(tmp_path))
        accelerator.backward(nn.functional.cross_entropy(net(x), Y))
        optimizer.step()
        optimizer.zero_grad()
    accelerator, again, optimizer, resumed = prepared()
    again(X[0])  # traces the channels
    accelerator.load_state(str(tmp_path))
    assert resumed.step == STEPS // 2
    for x in X[STEPS // 2 :]:
        accelerator.backward(nn.functional.cross_entropy(again(x), Y))
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = _network()
    inner = AdamW(model.parameters(), lr=1e-2)
    net, optimizer = fabric.setup(model, inner)
    method = _chase(net, optimizer)
    _train(net, optimizer, fabric.backward)
    assert method.optimizer is inner and method.step == STEPS and next(iter(method.masks)) == "0.weight"
    left = sum(int(alive.sum()) for alive in method.channels().values())
    small = gs.compact(net, X[0], optimizer=optimizer, check_latency=False, round_to=1)
    assert sum(counts["after"] for counts in small.report["channels"].values()) == left == 16
    if precision == "32-true":
        plain = _network()
        sgd = AdamW(plain.parameters(), lr=1e-2)
        _chase(plain, sgd)
        _train(plain, sgd)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def test_a_scheduler_and_an_overflow() -> None:
    """A scheduler replaces the optimizer's step; GradScaler leaves steps out. Only real ones count."""
    model = _network()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    method = gs.training.RigL(model, optimizer, density=0.3, total_steps=STEPS, update_every=2)
    after = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step, x in enumerate(X):
        scaler.scale(nn.functional.cross_entropy(model(x * (torch.inf if step == 3 else 1.0)), Y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        before.step(), after.step()
    assert method.step == STEPS - 1 and method.nnz() == round(0.3 * sum(method.sizes.values()))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class _Holder:
    """What Accelerate and Lightning have in common: the attribute `optimizer`."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class DeepSpeedOptimizerWrapper(_Holder):
    pass


class _Twice(Optimizer):
    """As SAM: steps of its own around those of another."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base_optimizer = base

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


class _NoHooks(SGD):
    def __init__(self, parameters: Any) -> None:
        self.param_groups, self.state, self.defaults = [{"params": list(parameters)}], {}, {}

    def step(self, closure: Any = None) -> None:
        pass


REFUSED: dict[str, tuple[Callable[[nn.Module, SGD], Any], str]] = {
    "no optimizer": (lambda net, sgd: "sgd", "must be a torch.optim.Optimizer, or a wrapper .* got str"),
    "a scheduler": (lambda net, sgd: torch.optim.lr_scheduler.StepLR(sgd, 1), "got StepLR"),
    "around another": (lambda net, sgd: _Holder(_Twice(sgd)), "_Twice is not supported: .* in its 'base_optimizer'"),
    "without hooks": (lambda net, sgd: _NoHooks(net.parameters()), "_NoHooks is not supported: its step runs no hooks"),
    "by name": (lambda net, sgd: DeepSpeedOptimizerWrapper(sgd), "DeepSpeedOptimizerWrapper is not supported"),
    "by name, inside": (lambda net, sgd: _Holder(torch.optim.LBFGS(net.parameters())), "LBFGS is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_before_anything_changes(case: str) -> None:
    model = _network()
    before = [p.clone() for p in model.parameters()]
    make, said = REFUSED[case]
    with pytest.raises(TypeError, match=said):
        gs.training.RigL(model, make(model, SGD(model.parameters(), lr=0.1)), total_steps=STEPS)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_cutting_in_place_slices_the_state_inside() -> None:
    model = _network()
    adam = AdamW(model.parameters(), lr=1e-2)
    _train(model, adam)
    graph = gs.compaction.ChannelGraph.build(model, X[0])
    gs.compaction.shrink_(model, graph, {"0": torch.arange(16) < 3}, _Holder(adam))
    assert {value.shape for value in adam.state[model[0].weight].values() if value.ndim} == {(3, 20)}


def test_any_number_of_wrappers() -> None:
    sgd = SGD(_network().parameters(), lr=0.1)
    assert unwrap_optimizer(_Holder(_Holder(sgd))) is sgd
    round_trip = _Holder(sgd)
    round_trip.optimizer = round_trip  # one that names itself ends, too
    with pytest.raises(TypeError, match="got _Holder"):
        unwrap_optimizer(round_trip)

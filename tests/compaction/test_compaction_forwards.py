"""Law: what stands around a forward (autocast, gradient modes, compiled or partial functions) changes nothing in what
is removed, and the copy runs weights of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.wrappers import full_precision

HALF = torch.bfloat16
X = torch.randn(16, 20, generator=torch.Generator().manual_seed(1))
NAMES = ("0", "2")


def _network() -> nn.Sequential:
    """Channels 8 to 31 of the first layer are read by nobody."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    with torch.no_grad():
        net[2].weight[:, 8:] = 0
    return net


class _Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Decorated(_Around):
    @torch.autocast("cpu", HALF)
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Entered(_Around):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", HALF):
            x = self.net[1](self.net[0](x))
            with torch.autocast("cpu", enabled=False):
                x = self.net[2](x.float())
            return self.net[3:](x)


class _Frozen(_Around):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.net[0](x)
            with torch.enable_grad():
                x = self.net[1](x)
            x = self.net[2](x)
        return self.net[3:](x)


class _NoGrad(_Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Doubled(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 2


class _Custom(_Decorated):
    def forward(self, x: Tensor) -> Tensor:
        return _Doubled.apply(super().forward(x))


class _Decorator:
    """A decorator that is an object, and that refuses to be copied."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: object) -> Tensor:
        return self.function(*args).float()

    def __getstate__(self) -> None:
        raise TypeError("not to be pickled")


def _instance(around: Callable[[Callable], Callable]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = _network()
        net.forward = around(net.forward)
        return net

    return make


def _object(forward: Callable) -> Callable:
    decorated = _Decorator(torch.autocast("cpu", HALF)(forward))
    return functools.wraps(forward)(lambda x: decorated(x))


def _partial(forward: Callable) -> Callable:
    return functools.partial(lambda module, x: forward(x) + 0 * module[4].bias, forward.__self__)


def _default(forward: Callable) -> Callable:
    def called(x: Tensor, inner: Callable = forward) -> Tensor:
        return inner(x)

    return called


CASES: dict[str, Callable[[], nn.Module]] = {
    "decorated": _Decorated,
    "entered": _Entered,
    "parts without gradients": _Frozen,
    "no_grad": _NoGrad,
    "custom_fwd": _Custom,
    "instance": _instance(torch.autocast("cpu", HALF)),
    "object": _instance(_object),
    "compiled function": _instance(functools.partial(torch.compile, backend="eager")),
    "partial": _instance(_partial),
    "default argument": _instance(_default),
}


@pytest.mark.parametrize("ambient", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_same_channels_go_and_the_copy_is_its_own(case: str, ambient: bool) -> None:
    model = CASES[case]()
    with torch.autocast("cpu", HALF, enabled=ambient):
        small = gs.compact(model, X, check_latency=False, round_to=1)
        assert torch.is_autocast_enabled("cpu") is ambient
    widths = {name.removeprefix("net."): counts["after"] for name, counts in small.report["channels"].items()}
    assert widths == {"0": 8, "2": 32}
    assert small.report["error"] <= 1e-6  # in full precision, whatever the model is run in
    with torch.no_grad():
        expected, found = model(X), small.model(X)
        assert expected.dtype == found.dtype  # the copy casts what the model casts
        assert torch.allclose(expected, found, atol=2 * torch.finfo(HALF).eps * float(expected.abs().max()))
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(small.model(X), found)
        for parameter in small.model.parameters():
            parameter.zero_()
        assert not small.model(X).any()


def test_full_precision_is_of_one_thread_and_ends() -> None:
    enter = torch.autocast.__enter__
    layer = nn.Linear(4, 4)
    seen: list[torch.dtype] = []

    def elsewhere() -> None:
        with torch.autocast("cpu", HALF):
            seen.append(layer(torch.ones(1, 4)).dtype)

    with torch.autocast("cpu", HALF):
        with full_precision(), full_precision():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            with torch.autocast("cpu", HALF):
                assert layer(torch.ones(1, 4)).dtype is torch.float32
        assert layer(torch.ones(1, 4)).dtype is HALF
    assert seen == [HALF] and torch.autocast.__enter__ is enter


class _Logging(_Around):
    """Computes a statistic of its channels: for a log, for a buffer, or as a part of the loss."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.net[1](self.net[0](x))
        if self.kind == "log":
            y.detach().square().mean()
        elif self.kind == "buffer":
            self.mean.mul_(0.9).add_(y.detach().mean(), alpha=0.1)
        else:
            self.auxiliary = y.square().mean()
        return self.net[2:](y)


@pytest.mark.parametrize(("kind", "width"), [("log", 8), ("buffer", 32), ("loss", 32)])
def test_a_statistic_for_a_log_bars_nothing(kind: str, width: int) -> None:
    with torch.no_grad():
        model = _Logging(kind)
        model.net[4].weight[:, 8:] = 0  # so that something can go
    small = gs.compact(model.eval(), X, round_to=None, check_latency=False, route="export")
    assert small.model.net[0].out_features == width and small.model.net[2].out_features == 8
    torch.testing.assert_close(small.model(X), model(X))

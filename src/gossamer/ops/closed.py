"""Linears whose result mostly meets a zero, for few rows, as in decoding: what is certain to be zero is not read.

    relu_linear     relu(x w^T + bias)              weights of neurons that are certainly off are not read
    gated_linear    gate * (x w^T + bias)           weights behind a closed gate are not read: `gossamer.ops.gated_mv`

Whether a neuron is off is decided by whole numbers of 8 bits, w = s q + d, which take a quarter as long to read. With m
inputs, and u the unit of float32, the exact product is at most

    w.x + bias <= s fl(q.x) + |x| (|d| + (m + 4) u s |q|) + bias         (Cauchy-Schwarz, and what rounding can do)

so where the right side is below zero the ReLU gives 0, whatever was rounded. All other neurons are computed from the
weight itself. What is not finite does not compare as below zero, and is computed.

A tuner lets this and dense take turns. Functions for graphs: no gradient, no checks.

Source: the idea to leave out neurons that ReLU will close is that of Deja Vu (ICML 2023), whose predictor errs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.handles import owner_of
from gossamer.measure import clock
from gossamer.ops import dense
from gossamer.ops.autograd import wants_gradient
from gossamer.ops.decoding import LEAST
from gossamer.ops.packs import KEPT
from gossamer.ops.registration import load_kernel, register_opaque
from gossamer.ops.skipping.passes import FEW_ROWS
from gossamer.ops.skipping.refusals import why_dense
from gossamer.planner import Tuner
from gossamer.planner.tuner.trial import DENSE

_QUESTION, _CLOSED, _OPEN = "decode", "closed", "open"
_CALL = 2e-5  # seconds of Python around a call that asks

Run = Callable[[], tuple[Tensor, Tensor]]  # the result, and what is not zero where a neuron is open


def closing_tuner(name: str = "") -> Tuner:
    """One for each layer: "closed", whose work grows with the share of neurons that are open, or dense."""
    return Tuner({_QUESTION: {_CLOSED: _OPEN}}, _prior, trusted=False, name=name, call=_CALL)


def _prior(question: str, alternative: str, densities: Mapping[str, float]) -> float:
    return 1.0 if alternative == DENSE else 0.3 + 1.2 * densities[_OPEN]


def relu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tuner: Tensor) -> Tensor:
    """relu(x w^T + bias). Its copy of the weight, of a quarter of the size, is kept until torch counts a change.

    Args:
        x: [..., C]. weight: [K, C]. bias: [K]. tuner: the handle of a `closing_tuner`.

    >>> site = closing_tuner()
    >>> relu_linear(torch.ones(1, 2), torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), None, site.handle)
    tensor([[2., 0.]])
    """
    if wants_gradient(x, weight, bias) or why_dense(x, weight, bias, 1, "auto") is not None:
        return F.linear(x, weight, bias).relu()
    y: Tensor = _opaque_relu(x.reshape(-1, x.shape[-1]), weight, bias, tuner)
    return y.view(*x.shape[:-1], weight.shape[0])


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, tuner: Tensor) -> Tensor:
    """gate * (x w^T + bias).

    Args:
        x: [..., C]. weight: [K, C]. bias: [K]. gate: [..., K]. tuner: the handle of a `closing_tuner`.

    >>> site = closing_tuner()
    >>> gated_linear(torch.ones(1, 2), torch.ones(2, 2), None, torch.tensor([[0.0, 3.0]]), site.handle)
    tensor([[0., 6.]])
    """
    if wants_gradient(x, weight, bias, gate) or why_dense(x, weight, bias, 1, "auto") or gate.dtype != x.dtype:
        return gate * F.linear(x, weight, bias)
    rows, gates = x.reshape(-1, x.shape[-1]), gate.reshape(-1, gate.shape[-1])
    y: Tensor = _opaque_gated(rows, weight, bias, gates, tuner)
    return y.view(*x.shape[:-1], weight.shape[0])


def _relu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, tuner: Tensor) -> Tensor:
    def by_all() -> tuple[Tensor, Tensor]:
        y = dense.linear(x, weight, bias).relu_()
        return y, y

    def by_open() -> tuple[Tensor, Tensor]:
        gate = open_neurons(x, weight, bias)
        return _gated(x, weight, bias, gate).relu_(), gate

    return _choose(x, weight, tuner, by_all, by_open, lambda: open_neurons(x, weight, bias))


def _gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, tuner: Tensor) -> Tensor:
    def by_all() -> tuple[Tensor, Tensor]:
        return dense.linear(x, weight, bias).mul_(gate), gate

    def by_open() -> tuple[Tensor, Tensor]:
        return _gated(x, weight, bias, gate), gate

    return _choose(x, weight, tuner, by_all, by_open, lambda: gate)


def _choose(
    x: Tensor, weight: Tensor, handle: Tensor, by_all: Run, by_open: Run, before: Callable[[], Tensor]
) -> Tensor:
    """The result, by what the tuner takes; for many rows, or a weight that is soon read, by all."""
    if not 0 < x.shape[0] <= FEW_ROWS or weight.numel() < LEAST:
        return by_all()[0]
    tuner = owner_of(handle, Tuner, "tuner")
    taken = tuner.bypassed(x.shape)
    if taken is not None:
        return (by_all if taken == DENSE else by_open)()[0]
    known = {_OPEN: _share(before())} if torch.are_deterministic_algorithms_enabled() else None
    choice = tuner.choose(_QUESTION, (DENSE, _CLOSED), x.shape, known)
    begin = clock.now()
    y, open_ = (by_all if choice == DENSE else by_open)()
    seconds = clock.now() - begin
    tuner.observe(_QUESTION, choice, seconds, {_OPEN: _share(open_)})
    return y


def _gated(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    kernel = load_kernel("cpu", "skip_mv", "gated_mv")  # not by torch's dispatcher, for its microseconds
    y: Tensor = kernel(x.contiguous(), weight.contiguous(), bias, gate.contiguous())
    return y


def _share(open_: Tensor) -> float:
    return int(torch.count_nonzero(open_)) / max(open_.numel(), 1)


def open_neurons(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1 where x w^T + bias may be above zero, 0 where it certainly is not: float32[B, K].

    >>> open_neurons(torch.ones(1, 2), torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.0, -1.0]]), None)
    tensor([[1., 0., 1.]])
    """
    whole, edges = KEPT.get(weight, "whole numbers", _whole), KEPT.get(weight, "edges", _edges)
    gate: Tensor = load_kernel("cpu", "open_mv", "open_mv")(
        x.contiguous(), whole, edges, None if bias is None else bias.contiguous()
    )  # fmt: skip
    return gate


def _scale(weight: Tensor) -> Tensor:
    largest = weight.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest / 127, 1.0)


def _whole(weight: Tensor) -> Tensor:
    return (weight / _scale(weight)).round().clamp(-127, 127).nan_to_num(0).to(torch.int8).contiguous()


def _edges(weight: Tensor) -> Tensor:
    """The scale of each row, and its |d| + (m + 4) u s |q|, rounded up."""
    scale = _scale(weight)
    stood_for = _whole(weight).double() * scale.double()
    rounding = (weight.shape[1] + 4) * 2.0**-24 * 1.01
    slack = (weight.double() - stood_for).norm(dim=1) + rounding * stood_for.norm(dim=1)
    return torch.stack([scale[:, 0], (slack * (1.0 + 1e-6)).float()])


def _fake(x: Tensor, weight: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_opaque_relu = register_opaque(
    "relu_linear", "(Tensor x, Tensor weight, Tensor? bias, Tensor tuner) -> Tensor", _relu_linear, _fake
)
_opaque_gated = register_opaque(
    "gated_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor gate, Tensor tuner) -> Tensor",
    _gated_linear,
    _fake,
)

"""Fused experts of transformers that leave out small activations when they decode, before both of their products.

An expert is chosen by few tokens, so its matrices are read for few rows: those of the inputs that stay, in each expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn.experts import FusedExperts, why_not_fused
from gossamer.nn.fused import up_name
from gossamer.nn.skip.memory_order import reorder_
from gossamer.nn.threshold.linear import FEW_ROWS, Prefill, is_few, takes
from gossamer.nn.threshold.thresholded import Thresholded
from gossamer.nn.traced import leaves_process
from gossamer.ops.decoding import decode

POINTS = ("up_input", "down_input")


class ThresholdPoint(Thresholded):
    """The threshold on what one product of all experts reads: x where |x| > threshold, else 0, where tokens are few."""

    prefill: Prefill

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.threshold, self.prefill = 0.0, "dense"
        self.start_counting(device)

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """x[entries, features], of so many tokens -> the same."""
        return self.shrunk(x) if 0 < tokens <= FEW_ROWS or self.prefill == "threshold" else x

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:.4g}, prefill={self.prefill!r}"


class ThresholdExperts(FusedExperts):
    """`FusedExperts` with a threshold on what the up products read, `up_input`, and the down products, `down_input`.

    With at most 8 tokens, where matrices are stored by input channel, each chosen expert reads only the weights of the
    inputs that stay, as `ThresholdLinear` does; else grouped products multiply what stays.
    """

    before: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        device = module.get_parameter("down_proj").device
        self.up_input, self.down_input = ThresholdPoint(device), ThresholdPoint(device)
        self.strides = [stack.stride() for stack in self.stacks()]
        vars(self)["before"] = module  # for the way back; no child

    def forward(self, x: Tensor, ids: Tensor | None = None, gates: Tensor | None = None) -> Tensor:
        """x[T, dim], ids[T, k], gates[T, k] -> [T, dim]."""
        if ids is not None and x.dim() == 2 and is_few(x) and self._skips(x):
            return self._few(x, ids, gates)
        return super().forward(x, ids, gates)

    def entered(self, x: Tensor) -> Tensor:
        """What the up products read of the tokens."""
        y: Tensor = self.up_input(x, x.shape[0])
        return y

    def inner(self, up: Tensor, tokens: int) -> Tensor:
        """What the down products read."""
        y: Tensor = self.down_input(super().inner(up, tokens), tokens)
        return y

    def by_input(self) -> bool:
        """Are the matrices of all experts stored by input channel?"""
        up, down = self.matrices()
        return up.mT.is_contiguous() and down.mT.is_contiguous()

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Up and down [experts, outputs, inputs], in the order in which they lie."""
        up, down = self.stacks()
        return (up, down) if self.transposed else (up.mT, down.mT)

    def store_by_input(self) -> Callable[[], None]:
        """Store them by input channel: the same Parameters in another order. Returns what stores them as before."""
        stacks = self.stacks()
        strides = [stack.stride() for stack in stacks]
        for stack, matrix in zip(stacks, self.matrices(), strict=True):
            _, outputs, inputs = matrix.shape
            by_input = (outputs * inputs, 1, outputs) if self.transposed else (outputs * inputs, outputs, 1)
            reorder_(stack, by_input)

        def undo() -> None:
            for stack, old in zip(stacks, strides, strict=True):
                reorder_(stack, old)

        return undo

    def _skips(self, x: Tensor) -> bool:
        watched = any(point._forward_pre_hooks for point in (self.up_input, self.down_input))
        if watched or torch.compiler.is_compiling() or leaves_process() or not x.is_cpu:
            return False
        return takes(x, *self.stacks()) and self.by_input()

    def _few(self, x: Tensor, ids: Tensor, gates: Tensor | None) -> Tensor:
        self._check_choice(x, ids, gates)
        up, down = self.matrices()
        tokens, k = ids.shape
        chosen = ids.reshape(-1)
        y = x.new_zeros(tokens * k, self.dim)
        for expert in chosen.unique().tolist():
            if expert < 0:
                continue
            at = (chosen == expert).nonzero().flatten()
            inner = super().inner(self._read(self.up_input, x[at // k], up[expert]), tokens)
            y[at] = self._read(self.down_input, inner, down[expert])
        return self.weighed(y.view(tokens, k, self.dim), gates)

    def _read(self, point: ThresholdPoint, x: Tensor, weight: Tensor) -> Tensor:
        y, kept = decode(x, weight, None, point._level, point.tuner)
        point.count(kept, x.numel())
        return y


def open_experts(model: nn.Module, wanted: Callable[[str], bool]) -> Callable[[], None]:
    """Put ThresholdExperts, with thresholds of 0, in place of fused experts whose name is wanted; return the undo."""
    opened = {
        name: ThresholdExperts(module)
        for name, module in model.named_modules()
        if name and up_name(module) and not isinstance(module, ThresholdExperts) and wanted(name)
        and why_not_fused(module) is None
    }  # fmt: skip
    for name, experts in opened.items():
        _put(model, name, experts)

    def undo() -> None:
        for name, experts in opened.items():
            if model.get_submodule(name) is experts:
                _put(model, name, experts.before.train(experts.training))

    return undo


def close_experts(model: nn.Module, unwanted: Callable[[str], bool] = lambda name: True) -> None:
    """Put back what was there before, where the name is unwanted."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ThresholdExperts) and unwanted(name):
            _put(model, name, module.before.train(module.training))


def experts_of(model: nn.Module, place: str) -> ThresholdExperts | None:
    """The experts that a place belongs to; None if it is no place of experts."""
    parent, _, child = place.rpartition(".")
    module: Any = model.get_submodule(parent) if child in POINTS else None
    return module if isinstance(module, ThresholdExperts) else None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

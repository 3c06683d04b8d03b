"""What a weight gradient is made of: the pairs (dy, x) of one optimizer step, kept while they are captured.

The gradient of an absent tile is a block of dy^T x. A layer whose gradient is captured hands both factors over during
the backward pass; whoever reads them forms as much of the product as it needs. The hand-over is an op of its own, so
that a compiled graph contains it; other layers do not call it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gossamer.handles import Handled, living_owner_of
from gossamer.ops.autograd import save
from gossamer.ops.registration import register_opaque


def _hand_over(dy: Tensor, x: Tensor, handle: Tensor) -> Tensor:
    capture = living_owner_of(handle, GradientCapture)  # who is gone needs no gradient
    if capture is not None and capture.is_open:
        capture.add(dy.detach().clone(), x.detach().clone())  # a compiled graph reuses its buffers
    return dy.clone()  # an op may not return its argument


def _fake(dy: Tensor, x: Tensor, handle: Tensor) -> Tensor:
    return dy.clone()


_capture = register_opaque("capture_gradient", "(Tensor dy, Tensor x, Tensor handle) -> Tensor", _hand_over, _fake)


class Captured(torch.autograd.Function):
    """The identity on y; its backward hands (dy, x) to the `GradientCapture` with this handle."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, handle: Tensor) -> Tensor:
        save(ctx, x, handle)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, handle = ctx.saved_tensors
        return _capture(dy, x, handle), None, None


class GradientCapture(Handled):
    """Collects the pairs (dy[tokens, out], x[tokens, in]) whose products add up to `parameter.grad`.

    Several backward passes before one optimizer step add up, as gradients do. A backward pass that finds the gradient
    cleared starts anew: what a step skipped by GradScaler left behind does not count.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._this_pass: list[tuple[Tensor, Tensor]] = []
        self._anew = True
        self._hook: RemovableHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether gradients are captured."""
        return self._hook is not None

    def open(self) -> None:
        """Start to capture."""
        self.close()
        self._hook = self.parameter.register_post_accumulate_grad_hook(self._end_of_pass)

    def close(self) -> None:
        """Stop and forget."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self.pairs, self._this_pass = None, [], []

    def add(self, dy: Tensor, x: Tensor) -> None:
        if not self._this_pass:
            gradient = self.parameter.grad
            self._anew = gradient is None or not bool(gradient.any())
        self._this_pass.append((dy, x))

    def _end_of_pass(self, parameter: Tensor) -> None:
        self.pairs = self._this_pass if self._anew else self.pairs + self._this_pass
        self._this_pass = []

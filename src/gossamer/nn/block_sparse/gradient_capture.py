"""What a weight gradient is made of: the pairs (dy, x) of one optimizer step, kept while somebody listens.

The gradient of an absent tile is a block of dy^T x. A layer that is listened to hands both factors over during the
backward pass; whoever reads them forms as much of the product as it needs. The hand-over is an operator of its own,
so that a compiled graph contains it; a layer nobody listens to does not call it.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gossamer.ops.autograd import save

_tickets = itertools.count()
_taps: weakref.WeakValueDictionary[int, Tap] = weakref.WeakValueDictionary()

torch.library.define("gossamer::tap", "(Tensor dy, Tensor x, Tensor ticket) -> Tensor")


@torch.library.impl("gossamer::tap", "CompositeExplicitAutograd")
def _hand_over(dy: Tensor, x: Tensor, ticket: Tensor) -> Tensor:
    tap = _taps.get(int(ticket))
    if tap is not None and tap.is_open:
        tap.add(dy.detach().clone(), x.detach().clone())  # a compiled graph reuses its buffers
    return dy.clone()  # an operator may not return its argument


@torch.library.register_fake("gossamer::tap")
def _fake(dy: Tensor, x: Tensor, ticket: Tensor) -> Tensor:
    return dy.clone()


class Tapped(torch.autograd.Function):
    """The identity on y; its backward hands (dy, x) to the tap with this ticket."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, ticket: Tensor) -> Tensor:
        save(ctx, x, ticket)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, ticket = ctx.saved_tensors
        return torch.ops.gossamer.tap(dy, x, ticket), None, None


class Tap:
    """Collects the pairs (dy[tokens, out], x[tokens, in]) whose products add up to `parameter.grad`.

    Several backward passes before one optimizer step add up, as gradients do. A backward pass that finds the gradient
    cleared starts anew: what a step skipped by GradScaler left behind does not count.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        number = next(_tickets)  # one for life
        # On the host, and a tensor: what a graph reads, and does not hold, is no reason to compile one for each layer.
        with torch.inference_mode(False):
            self.ticket = torch.tensor(number, device="cpu")
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._this_pass: list[tuple[Tensor, Tensor]] = []
        self._anew = True
        self._hook: RemovableHandle | None = None
        _taps[number] = self

    @property
    def is_open(self) -> bool:
        """Whether somebody listens."""
        return self._hook is not None

    def open(self) -> None:
        """Start listening."""
        self.close()
        self._hook = self.parameter.register_post_accumulate_grad_hook(self._end_of_pass)

    def close(self) -> None:
        """Stop listening and forget."""
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

"""grouped_mm and grouped_outer in autograd: each one's gradients are the other.

    entry e belongs to a group g(e) or to none; entry e of x is x[e // repeat]
    y[e] = x[e // repeat] @ w[g(e)]       dx[t] = sum over e // repeat == t of dy[e] @ w[g(e)]^T
                                          dw[g] = sum over e in g of x[e // repeat]^T dy[e]

`order` lists the entries group by group, `offsets` where each group starts: a routing pattern's indices and offsets.
The two functions name each other and therefore share this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.ops._register import HALF, Backend, check_transforms, in_float32, register, save


def _fake_mm(
    x: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor, weights: Tensor, flip: bool, out_rows: int
) -> Tensor:
    return x.new_empty(out_rows, weights.shape[1 if flip else 2])


def _fake_outer(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1], dy.shape[1])


def _used_in_float32(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`in_float32`, but only the weights of groups that have rows are widened: few tokens meet few experts."""
    widened = in_float32(like=0)(kernel)

    def launch(
        x: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor, weights: Tensor, *rest: Any
    ) -> Tensor:
        if x.dtype in HALF and len(offsets) == len(weights) + 1:
            used = offsets.diff() != 0
            if not bool(used.all()):
                offsets, weights = torch.cat([offsets[:1], offsets[1:][used]]), weights[used]
        return widened(x, source, target, offsets, weights, *rest)

    return launch


mm_on = register(
    "grouped_mm",
    "(Tensor x, Tensor? source, Tensor? target, Tensor offsets, Tensor weights, bool flip, SymInt out_rows) -> Tensor",
    _fake_mm,
    module="grouped",
    half=_used_in_float32,
)
outer_on = register(
    "grouped_outer",
    "(Tensor x, Tensor dy, Tensor? source, Tensor? target, Tensor offsets) -> Tensor",
    _fake_outer,
    module="grouped",
    half=in_float32(like=0),
)


def _folded(entries: Tensor, rows: int, repeat: int) -> Tensor:
    return entries if repeat == 1 else entries.view(rows, repeat, entries.shape[1]).sum(1)


def _row(order: Tensor, repeat: int) -> Tensor:
    return order if repeat <= 1 else order // repeat  # no entry at all if 0


def mm(
    x: Tensor, weights: Tensor, order: Tensor, offsets: Tensor, repeat: int, flip: bool, backend: Backend | None
) -> Tensor:
    """`GroupedMm` without autograd."""
    return mm_on(backend)(x, _row(order, repeat), order, offsets, weights, flip, x.shape[0] * repeat)


class GroupedMm(torch.autograd.Function):
    """x[t, k], weights[groups, k, n] (or [groups, n, k] and `flip`) -> y[t * repeat, n]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, order: Tensor, offsets: Tensor, repeat: int, flip: bool,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, x, weights, order, offsets)
        ctx.repeat, ctx.flip, ctx.backend = repeat, flip, backend
        return mm(x, weights, order, offsets, repeat, flip, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.grouped_matmul", grad)
        x, weights, order, offsets = ctx.saved_tensors
        grad_x = grad_weights = None
        if ctx.needs_input_grad[0]:
            entries = GroupedMm.apply(grad, weights, order, offsets, 1, not ctx.flip, ctx.backend)
            grad_x = _folded(entries, x.shape[0], ctx.repeat)
        if ctx.needs_input_grad[1]:
            outer = GroupedOuter.apply(x, grad, order, offsets, ctx.repeat, ctx.backend)
            grad_weights = outer.transpose(1, 2) if ctx.flip else outer
        return grad_x, grad_weights, None, None, None, None, None


class GroupedOuter(torch.autograd.Function):
    """x[t, k], dy[t * repeat, n] -> dw[groups, k, n]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dy: Tensor, order: Tensor, offsets: Tensor, repeat: int, backend: Backend | None
    ) -> Tensor:
        save(ctx, x, dy, order, offsets)
        ctx.repeat, ctx.backend = repeat, backend
        return outer_on(backend)(x, dy, _row(order, repeat), order, offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.grouped_matmul", grad)
        x, dy, order, offsets = ctx.saved_tensors
        grad_x = grad_dy = None
        if ctx.needs_input_grad[0]:
            grad_x = _folded(GroupedMm.apply(dy, grad, order, offsets, 1, True, ctx.backend), x.shape[0], ctx.repeat)
        if ctx.needs_input_grad[1]:
            grad_dy = GroupedMm.apply(x, grad, order, offsets, ctx.repeat, False, ctx.backend)
        return grad_x, grad_dy, None, None, None, None

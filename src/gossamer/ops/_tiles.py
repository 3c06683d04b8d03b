"""gather and scatter are each other's transpose, so each one's backward is the other, to any order.

The two autograd functions name each other and therefore share this file; `gather.py` and `scatter.py` hold the
public verbs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops._register import Backend, register
from gossamer.pattern import Pattern


def _fake_gather(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    return x.new_empty(indices.shape[0], bm, bn)


def _fake_scatter(values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int) -> Tensor:
    return values.new_empty(rows, cols)


gather_on = register(
    "gather", "(Tensor x, Tensor offsets, Tensor indices, SymInt bm, SymInt bn) -> Tensor", _fake_gather
)
scatter_on = register(
    "scatter", "(Tensor values, Tensor offsets, Tensor indices, SymInt rows, SymInt cols) -> Tensor", _fake_scatter
)


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int, backend: Backend | None) -> Tensor:
        return gather_on(backend)(x, offsets, indices, bm, bn)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, offsets, indices, _, _, ctx.backend = inputs
        ctx.save_for_backward(offsets, indices)
        ctx.rows, ctx.cols = x.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        offsets, indices = ctx.saved_tensors
        return Scatter.apply(grad, offsets, indices, ctx.rows, ctx.cols, ctx.backend), None, None, None, None, None


class Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int, backend: Backend | None
    ) -> Tensor:
        return scatter_on(backend)(values, offsets, indices, rows, cols)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, offsets, indices, _, _, ctx.backend = inputs
        ctx.save_for_backward(offsets, indices)
        _, ctx.bm, ctx.bn = values.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        offsets, indices = ctx.saved_tensors
        return Gather.apply(grad, offsets, indices, ctx.bm, ctx.bn, ctx.backend), None, None, None, None, None


def check_operand(name: str, x: Tensor, pattern: Pattern) -> None:
    """Refuse a tensor whose dtype no kernel moves or that lives on another device than the pattern."""
    if x.is_complex() or x.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"{name} must have a real dtype of 1, 2, 4 or 8 bytes an element, got {x.dtype}")
    if x.device != pattern.device:
        raise ValueError(f"{name} must be on the pattern's device {pattern.device}, got {x.device}")

"""gather and scatter are each other's transpose, so each one's backward is the other, to any order.

The two autograd functions name each other and therefore share this file; `gather.py` and `scatter.py` hold the
public verbs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops._register import Backend, check_transforms, register, save
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


# `forward(ctx, ...)` rather than `setup_context`: torch binds the latter's arguments by signature at every call, which
# costs 24 us of the 30 us that the boundary then takes. The price is that torch.func transforms are refused.
class Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int, backend: Backend | None
    ) -> Tensor:
        save(ctx, offsets, indices)
        ctx.shape, ctx.backend = x.shape, backend
        return gather_on(backend)(x, offsets, indices, bm, bn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.gather", grad)
        offsets, indices = ctx.saved_tensors
        return Scatter.apply(grad, offsets, indices, *ctx.shape, ctx.backend), None, None, None, None, None


class Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, offsets: Tensor, indices: Tensor, rows: int, cols: int, backend: Backend | None
    ) -> Tensor:
        save(ctx, offsets, indices)
        ctx.tile, ctx.backend = values.shape[1:], backend
        return scatter_on(backend)(values, offsets, indices, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.scatter", grad)
        offsets, indices = ctx.saved_tensors
        return Gather.apply(grad, offsets, indices, *ctx.tile, ctx.backend), None, None, None, None, None


def check_operand(name: str, x: Tensor, pattern: Pattern) -> None:
    """Refuse a tensor whose dtype no kernel moves or that lives on another device than the pattern."""
    if x.is_complex() or x.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"{name} must have a real dtype of 1, 2, 4 or 8 bytes an element, got {x.dtype}")
    if x.device != pattern.device:
        raise ValueError(f"{name} must be on the pattern's device {pattern.device}, got {x.device}")

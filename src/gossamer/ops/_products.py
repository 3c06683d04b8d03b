"""dsd and sdd in autograd: each one's gradients are the other, so any order of derivative exists.

    c = S b          dS = sample(dc b^T)      db = S^T dc
    c = S^T b        dS = sample(b dc^T)      db = S dc
    S = sample(a b)  da = dS b^T              db = a^T dS = (dS^T a)^T

The two functions name each other and therefore share this file; `dsd.py`, `dds.py` and `sdd.py` hold the public verbs.
Both take the pattern as `index`: (offsets, indices, work, offsets_t, indices_t, order, work_t), where the last four
belong to the transposed pattern and are None until something needs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops._register import Backend, check_transforms, in_float32, register, save
from gossamer.ops.transpose import Transposed, transpose_on
from gossamer.pattern import Pattern


def _fake_dsd(
    values: Tensor, offsets: Tensor, indices: Tensor, order: Tensor | None, scale: Tensor | None, b: Tensor,
    rows: int, flip: bool, column_major: bool, work: Tensor | None,
) -> Tensor:  # fmt: skip
    n = b.shape[1]
    return b.new_empty(n, rows).t() if column_major else b.new_empty(rows, n)


def _fake_sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    return a.new_empty(indices.shape[0], bm, bn)


dsd_on = register(
    "dsd",
    "(Tensor values, Tensor offsets, Tensor indices, Tensor? order, Tensor? scale, Tensor b, SymInt rows, bool flip, "
    "bool column_major, Tensor? work) -> Tensor",
    _fake_dsd,
    strided=(5,),
    half=in_float32(like=5, stored=0),
)
sdd_on = register(
    "sdd",
    "(Tensor a, Tensor b, Tensor offsets, Tensor indices, SymInt bm, SymInt bn) -> Tensor",
    _fake_sdd,
    strided=(0, 1),
    half=in_float32(like=0),
)


def index_of(pattern: Pattern, transposed: Transposed | None, work: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors of a pattern and, if given, of its transposed one."""
    index = pattern.row_offsets(), pattern.indices.reshape(-1), work
    if transposed is None:
        return *index, None, None, None, None
    other = transposed.pattern
    return *index, other.row_offsets(), other.indices.reshape(-1), transposed.order, transposed.work


def _with_transposed(index: list[Any], tile_cols: int, backend: Backend | None) -> list[Any]:
    if index[3] is not None:
        return index
    return [*index[:3], *transpose_on(backend)(*index[:2], tile_cols), None]


def is_column_major(x: Tensor) -> bool:
    return x.stride(-2) == 1 and x.stride(-1) != 1


class Dsd(torch.autograd.Function):
    """S @ b, or S^T @ b where `transposed`; S is [rows, cols]."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, b: Tensor, scale: Tensor | None, rows: int, cols: int, transposed: bool,
        column_major: bool, backend: Backend | None, *index: Tensor | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, values, b, scale, *index)
        ctx.sizes, ctx.transposed, ctx.backend = (rows, cols), transposed, backend
        return product(values, b, scale, rows, cols, transposed, column_major, backend, *index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.dsd", grad)
        values, b, scale, *index = ctx.saved_tensors
        (rows, cols), backend, (bm, bn) = ctx.sizes, ctx.backend, values.shape[1:]
        grad_values = grad_b = None
        if ctx.needs_input_grad[0]:
            left, right = (b, grad.t()) if ctx.transposed else (grad, b.t())
            grad_values = Sdd.apply(left, right, bm, bn, backend, *index)
            if scale is not None:
                grad_values = grad_values * scale.view(-1, 1, 1)
            grad_values = grad_values.to(values.dtype)
        if ctx.needs_input_grad[1]:
            if not ctx.transposed:
                index = _with_transposed(index, (cols + bn - 1) // bn, backend)
            grad_b = Dsd.apply(values, grad, scale, rows, cols, not ctx.transposed, is_column_major(b), backend, *index)
        return grad_values, grad_b, *[None] * 13


class Sdd(torch.autograd.Function):
    """The tiles of a @ b."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, bm: int, bn: int, backend: Backend | None, *index: Tensor | None
    ) -> Tensor:
        save(ctx, a, b, *index)
        ctx.tile, ctx.backend = (bm, bn), backend
        return sdd_on(backend)(a, b, *index[:2], bm, bn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.sdd", grad)
        a, b, *index = ctx.saved_tensors
        backend, (_, bn) = ctx.backend, ctx.tile
        sizes = a.shape[0], b.shape[1]
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = Dsd.apply(grad, b.t(), None, *sizes, False, is_column_major(a), backend, *index)
        if ctx.needs_input_grad[1]:
            index = _with_transposed(index, (sizes[1] + bn - 1) // bn, backend)
            grad_b = Dsd.apply(grad, a, None, *sizes, True, not is_column_major(b), backend, *index).t()
        return grad_a, grad_b, *[None] * 10


def product(
    values: Tensor, b: Tensor, scale: Tensor | None, rows: int, cols: int, transposed: bool, column_major: bool,
    backend: Backend | None, *index: Tensor | None,
) -> Tensor:  # fmt: skip
    """`Dsd` without autograd."""
    offsets, indices, work, offsets_t, indices_t, order, work_t = index
    if transposed:
        return dsd_on(backend)(values, offsets_t, indices_t, order, scale, b, cols, True, column_major, work_t)
    return dsd_on(backend)(values, offsets, indices, None, scale, b, rows, False, column_major, work)


def dsd_of(values: Tensor, b: Tensor, *args: Any) -> Tensor:
    """`Dsd`, through autograd only where something asks for a gradient."""
    if (values.requires_grad or b.requires_grad) and torch.is_grad_enabled():
        return Dsd.apply(values, b, *args)
    return product(values, b, *args)

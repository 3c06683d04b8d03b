"""few_rows_linear: x @ weight^T for a few rows of x, whose weight is then read once and not packed.

It is the product of one group of `grouped_matmul`, for weights that do not lie beside those of other groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops.arguments import FLOATS
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.grouped import mm_on
from gossamer.pattern.check import check_matrix

FEW = 28
"""Rows up to which the CPU's kernel has a way of its own (csrc/few_rows.h)."""


class FewRows(Differentiable):
    """x[rows, k], weight[n, k] -> [rows, n]."""

    name = "few_rows_linear"

    @staticmethod
    def compute(x: Tensor, weight: Tensor) -> Tensor:
        rows = x.shape[0]
        return mm_on(None)(x, None, None, torch.tensor([0, rows]), weight.unsqueeze(0), True, rows)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        save(ctx, x, weight)
        return FewRows.compute(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            grad.t() @ x if ctx.needs_input_grad[1] else None,
        )


def few_rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T. Differentiable in both, to any order.

    Args:
        x: [rows, k] on a CPU, float32 or float64; any number of rows, and worth it up to `FEW`.
        weight: [n, k] of x's dtype.

    Returns:
        [rows, n]. Sums run in another order than those of torch.nn.functional.linear.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> few_rows_linear(torch.ones(2, 3), torch.ones(4, 3))[0]
    tensor([3., 3., 3., 3.])
    """
    check_matrix("x", x)
    check_matrix("weight", weight)
    if x.dtype not in FLOATS or weight.dtype != x.dtype:
        raise TypeError(f"x and weight must be floats of one dtype, got {x.dtype} and {weight.dtype}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have shape [n, {x.shape[1]}] for x's columns, got {tuple(weight.shape)}")
    if not (x.is_cpu and weight.is_cpu):
        raise ValueError(f"x and weight must be on the CPU, got {x.device} and {weight.device}")
    y: Tensor = FewRows.call(x, weight)
    return y

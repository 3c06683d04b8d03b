"""few_rows_linear: x @ weight^T + bias for a few rows of x, whose weight is then read once and not packed.

Reading the weight takes the time, as in decoding token by token; torch's own products of few rows take longer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.registration import load_kernel, register
from gossamer.pattern.check import check_matrix, check_tensor

FEW = {torch.float32: 28, torch.float64: 28, torch.bfloat16: 8, torch.float16: 8}
"""Rows up to which this is faster than torch's products (measured on Zen 4), by dtype; others it does not take."""


def _fake(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


few_rows_on = register("few_rows", "(Tensor x, Tensor w, Tensor? bias) -> Tensor", _fake)


class FewRows(Differentiable):
    """x[rows, k], weight[n, k], bias[n] -> [rows, n]."""

    name = "few_rows_linear"
    operands = (0, 1, 2)

    @staticmethod
    def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.contiguous()
        # Not by torch's dispatcher where nobody has to see it, for its microseconds.
        run = few_rows_on(None) if torch.compiler.is_compiling() else load_kernel("cpu", "few_rows", "few_rows")
        y: Tensor = run(x.contiguous(), weight.contiguous(), bias)
        return y

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        save(ctx, x, weight)
        return FewRows.compute(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            grad.t() @ x if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias. Differentiable in all three, to any order.

    Args:
        x: [rows, k] on a CPU, float32, float64, bfloat16 or float16; any number of rows, and worth it up to `FEW`.
        weight: [n, k] of x's dtype.
        bias: [n] of x's dtype.

    Returns:
        [rows, n] of x's dtype. Sums of half types are float32; they run in another order than those of
        torch.nn.functional.linear, the same for a row whatever the other rows.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> few_rows_linear(torch.ones(2, 3), torch.ones(4, 3))[0]
    tensor([3., 3., 3., 3.])
    """
    check_matrix("x", x)
    check_matrix("weight", weight)
    if x.dtype not in FEW or weight.dtype != x.dtype:
        raise TypeError(f"x and weight must be floats of one dtype, got {x.dtype} and {weight.dtype}")
    if not (x.is_cpu and weight.is_cpu):
        raise ValueError(f"x and weight must be on a CPU, got {x.device} and {weight.device}")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have shape [n, {x.shape[1]}] for x's columns, got {tuple(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        if bias.dtype != x.dtype or tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(
                f"bias must be {x.dtype} of shape {(weight.shape[0],)}, got {bias.dtype} of {tuple(bias.shape)}"
            )
    y: Tensor = FewRows.call(x, weight, bias)
    return y

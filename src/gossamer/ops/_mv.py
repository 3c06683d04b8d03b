"""skip_mv and gated_mv in autograd: closed under differentiation, each one's gradients are products of the two.

    kept[b, c] = not |x[b, c]| <= threshold
    y[b] = bias + sum of x[b, c] * w[c] over kept     dx = kept * (dy w^T)     dw[c] = sum of x[b, c] * dy[b] over kept
    y    = gate * (x w^T + bias)     with dz = dy * gate: dx = dz w     dw = dz^T x     dgate = dy * (x w^T + bias)

With threshold 0 nothing but zeros is dropped, the function is x @ w, and its gradient by a zero of x is not zero: kept
is then 1 everywhere in dx. The two functions name each other and therefore share this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops._register import Backend, check_backend, check_transforms, register
from gossamer.pattern.check import check_matrix
from gossamer.planner.graph_input import graph_input


def _fake_skip(x: Tensor, w: Tensor, bias: Tensor | None, threshold: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w.shape[1]), x.new_empty(1, dtype=torch.int64)


def _fake_gated(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


skip_on = register(
    "skip_mv", "(Tensor x, Tensor w, Tensor? bias, Tensor threshold) -> (Tensor, Tensor)", _fake_skip, module="skip_mv"
)
gated_on = register(
    "gated_mv", "(Tensor x, Tensor w, Tensor? bias, Tensor gate) -> Tensor", _fake_gated, module="skip_mv"
)


ZERO = graph_input(0.0)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_operands(x: Tensor, w: Tensor, axis: int, backend: Backend | None) -> Tensor:
    """x as [B, C], where axis `axis` of w has C entries; refuses what no kernel of x's device takes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a strided (dense) tensor, got layout {x.layout}")
    if x.dim() not in (1, 2):
        raise ValueError(f"x must have shape [B, C] or [C], got {tuple(x.shape)}")
    check_matrix("w", w)
    if w.shape[axis] != x.shape[-1]:
        raise ValueError(
            f"w must have {x.shape[-1]} {'rows' if axis == 0 else 'columns'}, as x has entries, got {tuple(w.shape)}"
        )
    check_backend(backend, "x", x)
    on_cpu = x.device.type == "cpu" and backend != "reference"
    if x.dtype not in ((torch.float32, torch.bfloat16) if on_cpu else FLOATS):
        taken = "float32 or bfloat16 on a CPU (backend='reference' takes more)" if on_cpu else "of a float dtype"
        raise TypeError(f"x must be {taken}, got {x.dtype}")
    if w.dtype != x.dtype and (w.dtype, x.dtype) != (torch.bfloat16, torch.float32):
        raise TypeError(f"w must have x's dtype {x.dtype}, or be bfloat16 beside a float32 x, got {w.dtype}")
    if w.device != x.device:
        raise ValueError(f"w must be on x's device {x.device}, got {w.device}")
    return x if x.dim() == 2 else x.unsqueeze(0)


def check_bias(bias: Tensor | None, size: int, x: Tensor) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a tensor, got {type(bias).__name__}")
    if tuple(bias.shape) != (size,):
        raise ValueError(f"bias must have shape {(size,)}, one entry for each output, got {tuple(bias.shape)}")
    if bias.dtype != x.dtype:
        raise TypeError(f"bias must have x's dtype {x.dtype}, got {bias.dtype}")
    if bias.device != x.device:
        raise ValueError(f"bias must be on x's device {x.device}, got {bias.device}")


def within(x: Tensor, threshold: Tensor) -> Tensor:
    """Which elements a threshold drops; none if it is 0, where dropping a zero changes nothing but its gradient."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.abs() <= threshold) & (threshold > 0)


def _wanted(*operands: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


def skip(x: Tensor, w: Tensor, bias: Tensor | None, threshold: Tensor, backend: Backend | None) -> Tensor:
    """y[B, K], through autograd where an operand wants it."""
    if _wanted(x, w, bias):
        return SkipMv.apply(x, w, bias, threshold, backend)
    return skip_on(backend)(x, w, bias, threshold)[0]


def gated(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor, backend: Backend | None) -> Tensor:
    """y[B, K], through autograd where an operand wants it."""
    if _wanted(x, w, bias, gate):
        return GatedMv.apply(x, w, bias, gate, backend)
    return gated_on(backend)(x, w, bias, gate)


class SkipMv(torch.autograd.Function):
    """x[B, C], w[C, K], bias[K] or None -> y[B, K]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, threshold: Tensor, backend: Backend | None
    ) -> Tensor:
        ctx.save_for_backward(x, w, threshold)
        ctx.backend = backend
        ctx.bias_dtype = None if bias is None else bias.dtype
        return skip_on(backend)(x, w, bias, threshold)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.skip_mv", grad)
        x, w, threshold = ctx.saved_tensors
        dropped = within(x.detach(), threshold)
        kept, used = (~dropped).to(x.dtype), x.masked_fill(dropped, 0)
        grad_x = grad_w = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = gated(grad, w, None, kept, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_w = skip(used.t(), grad, None, ZERO, ctx.backend).to(w.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0).to(ctx.bias_dtype)
        return grad_x, grad_w, grad_bias, None, None


class GatedMv(torch.autograd.Function):
    """x[B, C], w[K, C], bias[K] or None, gate[B, K] -> y[B, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor, backend: Backend | None) -> Tensor:
        ctx.save_for_backward(x, w, bias, gate)
        ctx.backend = backend
        return gated_on(backend)(x, w, bias, gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_transforms("gossamer.ops.gated_mv", grad)
        x, w, bias, gate = ctx.saved_tensors
        grad_x = grad_w = grad_bias = grad_gate = None
        inner = grad * gate
        if ctx.needs_input_grad[0]:
            grad_x = skip(inner, w, None, ZERO, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_w = skip(inner.t(), x, None, ZERO, ctx.backend).to(w.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = inner.sum(0).to(bias.dtype)
        if ctx.needs_input_grad[3]:
            grad_gate = gated(x, w, bias, grad, ctx.backend).to(gate.dtype)
        return grad_x, grad_w, grad_bias, grad_gate, None

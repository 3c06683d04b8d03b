"""Few rows times a matrix, as in decoding token by token. Reading the matrix takes the time, so less of it is read.

    skip_mv             y[b] = bias + sum of x[b, c] * w[c] over the c with |x[b, c]| > threshold
    gated_mv            y = gate * (x w^T + bias)
    statistical_topk    t = mean(x) + std(x) * z,  y = max(x - t, 0),  z = the quantile of the normal distribution above
                        which k/d of it lie: about the k largest of each row, in linear time (Spark Transformer)

skip_mv and gated_mv are closed under differentiation, the gradients of each are products of the two:

    kept[b, c] = not |x[b, c]| <= threshold
    y[b] = bias + sum of x[b, c] * w[c] over kept     dx = kept * (dy w^T)     dw[c] = sum of x[b, c] * dy[b] over kept
    y    = gate * (x w^T + bias)     with dz = dy * gate: dx = dz w     dw = dz^T x     dgate = dy * (x w^T + bias)

With threshold 0 nothing but zeros is dropped, the function is x @ w, and the gradient of a zero of x is not zero: kept
is then 1 everywhere in dx.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.handles import graph_input
from gossamer.ops.autograd import Differentiable, wants_gradient
from gossamer.ops.index import check_like
from gossamer.ops.registration import HALF, Backend, check_backend, constant_in_graphs, register
from gossamer.pattern.check import check_matrix, check_tensor


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
    check_tensor("x", x)
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
    if x.dtype not in (FLOATS[1:] if on_cpu else FLOATS):
        taken = (
            "float32, bfloat16 or float16 on a CPU (backend='reference' takes more)" if on_cpu else "of a float dtype"
        )
        raise TypeError(f"x must be {taken}, got {x.dtype}")
    if w.dtype != x.dtype and (x.dtype != torch.float32 or w.dtype not in HALF):
        raise TypeError(f"w must have x's dtype {x.dtype}, or be a half type beside a float32 x, got {w.dtype}")
    if w.device != x.device:
        raise ValueError(f"w must be on x's device {x.device}, got {w.device}")
    return x if x.dim() == 2 else x.unsqueeze(0)


def check_bias(bias: Tensor | None, size: int, x: Tensor) -> None:
    if bias is None:
        return
    check_tensor("bias", bias)
    if tuple(bias.shape) != (size,):
        raise ValueError(f"bias must have shape {(size,)}, one entry for each output, got {tuple(bias.shape)}")
    check_like("bias", bias, x)


def within(x: Tensor, threshold: Tensor) -> Tensor:
    """Which elements a threshold drops; none if it is 0, where dropping a zero changes nothing but its gradient."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.abs() <= threshold) & (threshold > 0)


def shrink(x: Tensor, threshold: float) -> Tensor:
    """x where |x| > threshold, NaN included, else 0; x itself, with its whole gradient, if the threshold is 0."""
    if not threshold:
        return x
    if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16):
        # hardshrink would round the threshold to the type of x
        return x.masked_fill(x.float().abs() <= threshold, 0)
    return F.hardshrink(x, threshold)


class SkipMv(Differentiable):
    """x[B, C], w[C, K], bias[K] or None -> y[B, K]."""

    name, operands = "skip_mv", (0, 1, 2)

    @staticmethod
    def compute(x: Tensor, w: Tensor, bias: Tensor | None, threshold: Tensor, backend: Backend | None) -> Tensor:
        return skip_on(backend)(x, w, bias, threshold)[0]

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, threshold: Tensor, backend: Backend | None
    ) -> Tensor:
        ctx.save_for_backward(x, w, threshold)
        ctx.backend = backend
        ctx.bias_dtype = None if bias is None else bias.dtype
        return SkipMv.compute(x, w, bias, threshold, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, threshold = ctx.saved_tensors
        dropped = within(x.detach(), threshold)
        kept, used = (~dropped).to(x.dtype), x.masked_fill(dropped, 0)
        grad_x = grad_w = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = GatedMv.call(grad, w, None, kept, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_w = SkipMv.call(used.t(), grad, None, ZERO, ctx.backend).to(w.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0).to(ctx.bias_dtype)
        return grad_x, grad_w, grad_bias, None, None


class GatedMv(Differentiable):
    """x[B, C], w[K, C], bias[K] or None, gate[B, K] -> y[B, K]."""

    name, operands = "gated_mv", (0, 1, 2, 3)

    @staticmethod
    def compute(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor, backend: Backend | None) -> Tensor:
        return gated_on(backend)(x, w, bias, gate)

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor, backend: Backend | None) -> Tensor:
        ctx.save_for_backward(x, w, bias, gate)
        ctx.backend = backend
        return GatedMv.compute(x, w, bias, gate, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, bias, gate = ctx.saved_tensors
        grad_x = grad_w = grad_bias = grad_gate = None
        inner = grad * gate
        if ctx.needs_input_grad[0]:
            grad_x = SkipMv.call(inner, w, None, ZERO, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_w = SkipMv.call(inner.t(), x, None, ZERO, ctx.backend).to(w.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = inner.sum(0).to(bias.dtype)
        if ctx.needs_input_grad[3]:
            grad_gate = GatedMv.call(x, w, bias, grad, ctx.backend).to(gate.dtype)
        return grad_x, grad_w, grad_bias, grad_gate, None


def skip_mv(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *, threshold: float = 0.0, backend: Backend | None = None
) -> Tensor:
    """x @ w + bias without the elements of x that are at most `threshold` in size. Differentiable, to any order.

    The time of such a product is that of reading w, and a row of w that no row of x needs is never read: at 70 % zeros
    less than a third of it is. With B rows of x that drop places independently, a row of w is read if any of them needs
    it, so what is saved shrinks quickly with B; above about 8 rows use `gs.ops.linear`.

    Args:
        x: [B, C] or [C], contiguous (else copied). float32, bfloat16 or float16.
        w: [C, K], contiguous (else copied on every call): the transpose of `torch.nn.Linear.weight`, row c holding what
            input c contributes. x's dtype, or a half type beside a float32 x.
        bias: [K], or None.
        threshold: at least 0; in float32. 0 drops zeros only. NaN is never dropped.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist. The last takes float64.

    Returns:
        [B, K] or [K] in x's dtype, summed in float32. Same bits on any number of threads and in every run; on a CPU a
        row does not depend on the others. Inf and NaN in rows of w that are skipped do not reach y.
        Gradients are those of this function: with a threshold above 0 a dropped x gets zero, and its row of w is not
        read for it either; with threshold 0, where dropping changes nothing, every x gets its own.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: thresholded activations and one row of weights per input channel are those of TEAL (arXiv 2408.14690).

    >>> import torch
    >>> x, w = torch.tensor([0.0, 2.0, 0.1]), torch.tensor([[float("inf")], [3.0], [100.0]])
    >>> skip_mv(x, w, backend="reference"), skip_mv(x, w, threshold=0.5, backend="reference")
    (tensor([16.]), tensor([6.]))
    """
    rows = check_operands(x, w, 0, backend)
    check_bias(bias, w.shape[1], x)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    y = SkipMv.call(rows, w, bias, torch.tensor(float(threshold), dtype=torch.float64, device="cpu"), backend)
    return y if x.dim() == 2 else y.squeeze(0)


def gated_mv(
    x: Tensor, w: Tensor, gate: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None
) -> Tensor:
    """gate * (x @ w.t() + bias) where the gate is not 0, and 0 elsewhere. Differentiable, to any order.

    The rows of w whose gate is 0 for every row of x are never read, nor is their inner product made.

    Args:
        x: [B, C] or [C], contiguous (else copied). float32, bfloat16 or float16.
        w: [K, C], contiguous (else copied on every call), as `torch.nn.Linear.weight` is. x's dtype, or a half
            type beside a float32 x.
        gate: [B, K] or [K], as x; its dtype.
        bias: [K], or None.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist. The last takes float64.

    Returns:
        [B, K] or [K] in x's dtype, summed in float32. Same bits on any number of threads and in every run. Inf and NaN
        in rows of w behind a closed gate do not reach y. The gate's gradient is exact, at closed gates too, so it
        reads every row of w that has a gradient.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: skipping the outputs behind closed gates is that of Deja Vu (ICML 2023) and CATS (arXiv 2404.08763).

    >>> import torch
    >>> x, w = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [float("nan"), 1.0]])
    >>> gated_mv(x, w, torch.tensor([10.0, 0.0]), backend="reference")
    tensor([30.,  0.])
    """
    rows = check_operands(x, w, 1, backend)
    check_bias(bias, w.shape[0], x)
    check_tensor("gate", gate)
    expected = (*x.shape[:-1], w.shape[0])
    if tuple(gate.shape) != expected:
        raise ValueError(f"gate must have shape {expected}, one entry for each output, got {tuple(gate.shape)}")
    check_like("gate", gate, x)
    y = GatedMv.call(rows, w, bias, gate if x.dim() == 2 else gate.unsqueeze(0), backend)
    return y if x.dim() == 2 else y.squeeze(0)


def statistical_topk(x: Tensor, k: int, *, dim: int = -1) -> Tensor:
    """max(x - t, 0) along `dim`, with the threshold t that about k entries exceed. Differentiable to any order.

    Two sums over a row replace a selection, so the time is linear and vectorised, and the result is continuous in x:
    an entry fades out instead of being dropped. Gradients go through the mean and the spread as well.

    How many entries are left is a statement about the data, not a promise. With d entries per row, independent and
    normal (any mean, any scale), every entry exceeds t with the same probability,

        P(T > z * sqrt(d (d - 2) / ((d - 1)^2 - d z^2)))        T Student's t with d - 2 degrees of freedom,

    whose limit for large d is k / d, and the count varies by less than sqrt(k) from row to row. On other data the count
    follows the tail: never more than d / (1 + z^2) where z > 0 (Cantelli), and as few as none.

    Args:
        x: [..., d, ...] float64, float32, bfloat16 or float16; half types are summed in float32.
        k: entries to keep of each row, 1 <= k < d.
        dim: the axis of the d entries.

    Returns:
        y of x's shape and dtype. A row whose entries are all equal has no spread and gives zeros. NaN or infinity in
        a row makes the row NaN.

    Raises:
        TypeError: x is no float tensor, or k no int. ValueError: k out of range. IndexError: dim out of range.

    Source: You et al., "Spark Transformer: reactivating sparsity in FFN and attention", 2025, section 3
    (statistical top-k: soft threshold at mean + std * Q(1 - k/d), std with d - 1 in the denominator).

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    >>> statistical_topk(x, 1)
    tensor([0.0000, 0.0000, 0.0000, 0.0000, 3.4652])
    """
    check_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x must be a float tensor, got {x.dtype}")
    check_k(k)
    d = x.size(dim)
    if k >= d:
        raise ValueError(f"k must be less than {d}, the size of dim {dim}, got {k}")
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = wide - wide.mean(dim, keepdim=True)
    # A norm is one vectorised pass; torch.std takes eight times as long. Both have the gradient 0 at 0.
    deviation = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    shift = deviation * (_quantile(k, d) / math.sqrt(d - 1))
    if wants_gradient(x):
        return (centred - shift).relu().to(x.dtype)
    return centred.sub_(shift).relu_().to(x.dtype)


def check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


@constant_in_graphs
def _quantile(k: int, d: int) -> float:
    return NormalDist().inv_cdf(1 - k / d)

"""gated_mv: few rows times a matrix, making only the outputs whose gate is open; the up projection of a gated FFN.

y = gate * (x @ w^T + bias)
"""

from __future__ import annotations

from torch import Tensor

from gossamer.ops._mv import check_bias, check_operands, gated
from gossamer.ops._register import Backend, check_transforms


def gated_mv(
    x: Tensor, w: Tensor, gate: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None
) -> Tensor:
    """gate * (x @ w.t() + bias) where the gate is not 0, and 0 elsewhere. Differentiable, to any order.

    The rows of w whose gate is 0 for every row of x are never read, nor is their inner product made.

    Args:
        x: [B, C] or [C], contiguous (else copied). float32 or bfloat16 on a CPU, also float16 on a GPU.
        w: [K, C], contiguous (else copied on every call), as `torch.nn.Linear.weight` is. x's dtype, or bfloat16
            beside a float32 x.
        gate: [B, K] or [K], as x; its dtype.
        bias: [K], or None.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist. The last takes float64.

    Returns:
        [B, K] or [K] in x's dtype, summed in float32. Same bits on any number of threads and in every run. Inf and NaN
        in rows of w behind a closed gate do not reach y. The gradient by the gate is exact, at closed gates too, so it
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
    if not isinstance(gate, Tensor):
        raise TypeError(f"gate must be a tensor, got {type(gate).__name__}")
    expected = (*x.shape[:-1], w.shape[0])
    if tuple(gate.shape) != expected:
        raise ValueError(f"gate must have shape {expected}, one entry for each output, got {tuple(gate.shape)}")
    if gate.dtype != x.dtype:
        raise TypeError(f"gate must have x's dtype {x.dtype}, got {gate.dtype}")
    if gate.device != x.device:
        raise ValueError(f"gate must be on x's device {x.device}, got {gate.device}")
    check_transforms("gossamer.ops.gated_mv", x, w, bias, gate)
    y = gated(rows, w, bias, gate if x.dim() == 2 else gate.unsqueeze(0), backend)
    return y if x.dim() == 2 else y.squeeze(0)

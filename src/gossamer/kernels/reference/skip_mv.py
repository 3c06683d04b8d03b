"""Few rows times a matrix of weights of which only the rows that are needed are read."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._slots import accumulator


def skip_mv(x: Tensor, w: Tensor, bias: Tensor | None, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """x[B, C], w[C, K] -> (y[B, K] in x's dtype, int64[1]: how many elements of x were used).

    y[b] = bias + the sum of x[b, c] * w[c] over the c with not |x[b, c]| <= threshold: a NaN is used, and what lies in
    other rows of w never reaches y[b], Inf and NaN included.
    """
    kind = accumulator(x.dtype)
    wide = x.to(kind)
    kept = ~(wide.abs() <= threshold)
    y = torch.stack([row[keep] @ w[keep].to(kind) for row, keep in zip(wide, kept, strict=True)] or [w.new_empty(0)])
    y = y.reshape(x.shape[0], w.shape[1]).to(kind)
    if bias is not None:
        y = y + bias.to(kind)
    return y.to(x.dtype), kept.sum().reshape(1)


def gated_mv(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """x[B, C], w[K, C], gate[B, K] -> y[B, K] = gate * (x w^T + bias) in x's dtype; +0 where the gate is 0."""
    kind = accumulator(x.dtype)
    y = x.to(kind) @ w.to(kind).t()
    if bias is not None:
        y = y + bias.to(kind)
    return torch.where(gate == 0, 0, gate.to(kind) * y).to(x.dtype)

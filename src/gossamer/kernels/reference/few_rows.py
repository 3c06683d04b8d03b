"""A linear layer of few rows."""

from __future__ import annotations

from torch import Tensor


def few_rows(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """x[B, C], w[K, C], bias[K] -> y[B, K] = x w^T + bias."""
    y = x @ w.t()
    return y if bias is None else y + bias

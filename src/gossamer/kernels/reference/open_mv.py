"""Which outputs of a linear layer may be above zero, for few rows."""

from __future__ import annotations

from torch import Tensor


def open_mv(x: Tensor, whole: Tensor, edges: Tensor, bias: Tensor | None) -> Tensor:
    """x[B, C], whole int8[K, C], edges[2, K] (scale, slack), bias[K] -> gate[B, K].

    0 where scale * (x . whole) + slack * |x| < -bias, 1 elsewhere and where that is no number.
    """
    wide, (scale, slack) = x.double(), edges.double()
    upper = scale * (wide @ whole.double().t()) + slack * wide.norm(dim=1, keepdim=True)
    below = upper < (0 if bias is None else -bias.double())
    return (~below).to(x.dtype)

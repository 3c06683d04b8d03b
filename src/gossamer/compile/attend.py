"""What a packed graph calls for attention."""

from __future__ import annotations

from torch import Tensor

from gossamer import ops


def attend(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor,
    scale: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """Attention of every token to those of its text that the mask shows: q[T, heads, width] -> the same."""
    return ops.varlen_attention(
        q, k, v, offsets, kind=kind, mask=mask, tokens=tokens, scale=scale, dropout=float(dropout)
    )

"""What a packed graph calls for attention."""

from __future__ import annotations

import torch.nn.functional as F
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


def attend_across(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tokens: Tensor, length: int, scale: float | None,
    dropout: float,
) -> Tensor:  # fmt: skip
    """Attention of q[T, heads, width] to other texts k, v[B, heads, keys, width], as a decoder's to its encoder's.

    Queries are put back where they were for it, zeros where there are none: products with weights are what takes long.

    Args:
        tokens: int64[T], b * length + s of each query. mask: what broadcasts to [B, heads, length, keys].
    """
    batch, heads = k.shape[0], q.shape[1]
    whole = q.new_zeros(batch * length, *q.shape[1:]).index_copy(0, tokens, q).unflatten(0, (batch, length))
    y = F.scaled_dot_product_attention(
        whole.transpose(1, 2), k, v, attn_mask=mask, dropout_p=float(dropout), scale=scale,
        enable_gqa=heads != k.shape[1],
    )  # fmt: skip
    return y.transpose(1, 2).flatten(0, 1).index_select(0, tokens)

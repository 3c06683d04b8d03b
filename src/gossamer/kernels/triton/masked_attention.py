"""Attention over a mask on a GPU: torch's operators, which compute every score."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference import masked_attention as plain


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `gossamer.kernels.reference.masked_attention`."""
    return plain.masked_attention(q, k, v, mask, scale, dtype=torch.promote_types(q.dtype, torch.float32))


def masked_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `gossamer.kernels.reference.masked_attention`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return plain.masked_attention_backward(dout, q, k, v, mask, out, lse, scale, dtype=dtype)

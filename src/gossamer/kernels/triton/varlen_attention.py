"""Attention of packed texts on a GPU: torch's flash attention of all texts at once, else each by itself.

Flash attention is for half floats and heads of up to 256 numbers, with nothing hidden but what comes later. What is
left goes text by text, and for that the host waits for `offsets`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference import varlen_attention as plain
from gossamer.kernels.texts import CAUSAL, MASKED, rows

_WIDEST = 256


def _is_flash(q: Tensor, v: Tensor, kind: Tensor, dropout: float, by_mask: bool = False) -> bool:
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] == v.shape[2] <= _WIDEST and q.shape[2] % 8 == 0
    return q.is_cuda and fits and len(q) > 0 and dropout == 0 and not by_mask and int(kind) != MASKED


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if not _is_flash(q, v, kind, dropout):
        dtype = torch.promote_types(q.dtype, torch.float32)
        return plain.varlen_attention(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale, dtype=dtype)
    q, k, v = rows(q), rows(k), rows(v)
    ends, longest = offsets.to(torch.int32), len(q)  # the number of rows bounds each text, and nobody waits for it
    out, lse = torch.ops.aten._flash_attention_forward(
        q, k, v, ends, ends, longest, longest, 0.0, int(kind) == CAUSAL, False, scale=scale
    )[:2]
    return out, lse.t().contiguous()


def varlen_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if not _is_flash(q, v, kind, dropout, by_mask):
        dtype = torch.promote_types(q.dtype, torch.float32)
        return plain.varlen_attention_backward(
            dout, q, k, v, out, lse, offsets, kind, mask, tokens, seed, dropout, scale, by_mask, dtype=dtype
        )
    q, k, v = rows(q), rows(k), rows(v)
    ends, longest = offsets.to(torch.int32), len(q)
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of the dropout that there is not
    gradients = torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse.t().contiguous(), ends, ends, longest, longest, 0.0, int(kind) == CAUSAL, state,
        q.new_empty(0), scale=scale,
    )  # fmt: skip
    dq, dk, dv = (gradient.contiguous() for gradient in gradients)
    return dq, dk, dv, q.new_zeros(0)

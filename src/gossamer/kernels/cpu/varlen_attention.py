"""Attention of packed texts: torch's flash attention of each, on views of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference import varlen_attention as plain
from gossamer.kernels.texts import CAUSAL, MASKED, Sight, Text, rows, texts

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _in(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _as_batch(x: Tensor, begin: int, end: int) -> Tensor:
    """[1, heads, tokens, width] of a text."""
    return x[begin:end].transpose(0, 1).unsqueeze(0)


def _bias(sight: Sight, text: Text, q: Tensor) -> Tensor | None:
    bias = sight.bias(text, q) if sight.kind == MASKED else None
    return bias if bias is None else bias[None]


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if dropout > 0 or q.shape[2] != v.shape[2]:
        return plain.varlen_attention(
            q, k, v, offsets, kind, mask, tokens, seed, dropout, scale, dtype=_in(q)
        )  # fmt: skip
    out = q.new_empty(*q.shape[:2], v.shape[2])
    lse = q.new_empty(q.shape[:2], dtype=_in(q))
    q, k, v, sight = rows(q), rows(k), rows(v), Sight(kind, mask, tokens)
    for text in texts(offsets, len(q)):
        _, begin, end = text
        each = (_as_batch(x, begin, end) for x in (q, k, v))
        bias = _bias(sight, text, q)
        found, sums = _forward(*each, 0.0, sight.kind == CAUSAL, attn_mask=bias, scale=scale)
        out[begin:end], lse[begin:end] = found[0].transpose(0, 1), sums[0].t()
    return out, lse


def varlen_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if dropout > 0 or by_mask or q.shape[2] != v.shape[2]:
        return plain.varlen_attention_backward(
            dout, q, k, v, out, lse, offsets, kind, mask, tokens, seed, dropout, scale, by_mask, dtype=_in(q)
        )
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    q, k, v, sight = rows(q), rows(k), rows(v), Sight(kind, mask, tokens)
    for text in texts(offsets, len(q)):
        _, begin, end = text
        each = (_as_batch(x, begin, end) for x in (dout, q, k, v, out))
        bias = _bias(sight, text, q)
        sums = lse[begin:end].t().unsqueeze(0)
        found = _backward(*each, sums, 0.0, sight.kind == CAUSAL, attn_mask=bias, scale=scale)
        for into, gradient in zip((dq, dk, dv), found, strict=True):
            into[begin:end] = gradient[0].transpose(0, 1)
    return dq, dk, dv, q.new_zeros(0)

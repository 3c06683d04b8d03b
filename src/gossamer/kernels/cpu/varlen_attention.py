"""Attention of packed texts: one kernel for all of them, in float32; in float64 one text after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import attention as native
from gossamer.kernels.reference import varlen_attention as plain
from gossamer.kernels.texts import CAUSAL, MASKED, Sight, rows, texts


def _is_native(q: Tensor, dropout: float, by_mask: bool = False) -> bool:
    return q.dtype != torch.float64 and dropout == 0 and not by_mask


def _in(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _setting(sight: Sight, offsets: Tensor, count: int, scale: float) -> native.Setting:
    """The texts, and what they see; a mask is looked at once, where it lies, if it is bool or float32."""
    of = native.Texts(offsets, len(offsets) - 1, count, 0)
    texts(offsets, count)
    if sight.kind != MASKED:
        return native.Setting(of, scale, sight.kind == CAUSAL)
    at = sight.all_places(offsets)
    assert sight.mask is not None
    seen = native.Seen(native.readable(sight.mask), at)
    return native.Setting(of, scale, seen=seen, plan=native.plan(of, seen))


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if not _is_native(q, dropout):
        return plain.varlen_attention(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale, dtype=_in(q))
    sight = Sight(kind, mask, tokens)
    setting = _setting(sight, offsets, len(q), scale)
    out = q.new_empty(*q.shape[:2], v.shape[2], dtype=torch.float32)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    wide_q, wide_k, wide_v = (rows(x.float()) for x in (q, k, v))
    native.attention(wide_q, wide_k, wide_v, out, lse, setting)
    return out.to(q.dtype), lse


def varlen_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.varlen_attention`."""
    if not _is_native(q, dropout, by_mask):
        return plain.varlen_attention_backward(
            dout, q, k, v, out, lse, offsets, kind, mask, tokens, seed, dropout, scale, by_mask, dtype=_in(q)
        )
    sight = Sight(kind, mask, tokens)
    setting = _setting(sight, offsets, len(q), scale)
    given, wide_q, wide_k, wide_v, result = (rows(x.float()) for x in (dout, q, k, v, out))
    by_q, by_k, by_v = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    native.attention_backward(given, wide_q, wide_k, wide_v, result, lse, by_q, by_k, by_v, setting)
    return by_q.to(q.dtype), by_k.to(q.dtype), by_v.to(q.dtype), q.new_zeros(0)

"""Attention masks of passes with gradients, in which a unit's keys are those of the tokens that run it."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6
"""The weight below which a key is as good as absent."""
_STEEP = 4


def _four(mask: Tensor) -> Tensor:
    if mask.dim() != 4:
        raise ValueError(
            f"attention_mask must be [batch, 1, tokens, tokens] in a model that is trained, got {list(mask.shape)}: "
            'load it with attn_implementation="sdpa" or "eager"'
        )
    return mask


def causal(length: int, device: torch.device) -> Tensor:
    """bool[1, 1, length, length], True where a query sees a key."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def some_keys(mask: Tensor | None, index: Tensor, valid: Tensor) -> Tensor:
    """The mask among some tokens, `index` [batch, some] of each text; those that are not `valid` are seen by nobody.

    Args:
        mask: the model's, [batch, 1, tokens, tokens], bool or added to scores; None: causal.

    Returns:
        The same kind; a token that is not valid sees itself, so that nothing becomes NaN.
    """
    batch, some = index.shape
    if mask is None:
        among = causal(some, index.device).expand(batch, 1, some, some)
    else:
        mask = _four(mask).expand(batch, -1, -1, -1)
        rows = index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        among = mask.gather(2, rows).gather(3, index[:, None, None, :].expand(-1, mask.shape[1], some, -1))
    seen = valid[:, None, None, :]
    own = torch.eye(some, dtype=torch.bool, device=index.device)
    if among.dtype == torch.bool:
        return (among & seen) | own
    least = torch.finfo(among.dtype).min
    return torch.where(seen, among, least).masked_fill(own, 0.0)


def weighed_keys(mask: Tensor | None, weight: Tensor) -> Tensor:
    """The mask with 4 log weight [batch, tokens] added to the scores of keys: one counts as its token runs, or less.

    Less, because softmax makes up for a small factor where a score is large: with log weight alone, models learned to
    leave keys in layers that their tokens nearly skipped, and decisions lost them. A token's own key counts whole, for
    where it runs the unit it has it.
    """
    batch, length = weight.shape
    bias = _STEEP * weight.clamp_min(LEAST).log()[:, None, None, :].expand(batch, 1, length, length)
    own = torch.eye(length, dtype=torch.bool, device=weight.device)
    bias = bias.masked_fill(own, 0.0)
    seen = causal(length, weight.device) if mask is None else _four(mask)
    if seen.dtype == torch.bool:
        return bias.masked_fill(~seen, torch.finfo(bias.dtype).min)
    return (bias + seen).clamp_min(torch.finfo(bias.dtype).min)

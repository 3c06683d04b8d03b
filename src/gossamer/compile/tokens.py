"""Which tokens are there, read off the masks of attention at run time.

A token is there if anybody sees it: its column of the mask hides it from some query of its text at most. What no query
sees reaches nobody, so leaving it out changes no other token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.ops.attention.arguments import once

FULL, CAUSAL, MASKED = 0, 1, 2
HIDDEN = -1e4
"""A float mask adds to scores; what adds this or less hides: exp(-1e4) is 0 in every float type."""


def seen(mask: Tensor) -> Tensor:
    """bool like mask: what a query sees."""
    return mask if mask.dtype == torch.bool else mask > HIDDEN


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch that are there, one text after the other.

    Attributes:
        keep: bool[B, S].
        at: int64[T], b * S + s of each.
        offsets: int64[B + 1], where each text starts.
        kinds: for each mask int64[] on the CPU, what it comes to among these tokens: FULL, CAUSAL or MASKED.
    """

    keep: Tensor
    at: Tensor
    offsets: Tensor
    kinds: tuple[Tensor, ...]

    @property
    def share(self) -> float:
        """Tokens that are there, of all."""
        return len(self.at) / max(self.keep.numel(), 1)


def kept(masks: Sequence[Tensor], batch: int, sequence: int) -> Tensor:
    """bool[B, S]: tokens that some query of some mask sees.

    Args:
        masks: [B or 1, heads or 1, S or 1, S], bool (True is seen) or float (added to scores).
    """
    keep = None
    for mask in masks:
        columns = seen(once(mask)).flatten(1, -2).any(1).expand(batch, sequence)
        keep = columns if keep is None else keep | columns
    assert keep is not None
    return keep


def kind_of(mask: Tensor, keep: Tensor) -> int:
    """What a mask says about the tokens that are kept, to each other."""
    mask = once(mask).expand(-1, -1, *mask.shape[2:])  # texts and heads that share one
    sees = seen(mask)
    if mask.dtype != torch.bool and bool((mask.where(sees, 0) != 0).any()):
        return MASKED  # it adds to scores
    # Rows of tokens that are left out do not count.
    rows, columns = keep[:, None, :, None], keep[:, None, None, :]
    if sees.shape[-2] == 1:
        return FULL if bool((sees | ~columns).all()) else MASKED
    if bool((sees | ~columns | ~rows).all()):
        return FULL
    lower = torch.ones(sees.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    same = sees == lower
    return CAUSAL if bool((same | ~columns | ~rows).all()) else MASKED


def tokens_of(masks: Sequence[Tensor], keep: Tensor) -> Tokens:
    at = keep.flatten().nonzero().squeeze(1)
    offsets = torch.zeros(keep.shape[0] + 1, dtype=torch.int64, device=keep.device)
    torch.cumsum(keep.sum(1), 0, out=offsets[1:])
    kinds = tuple(torch.tensor(kind_of(mask, keep), device="cpu") for mask in masks)
    return Tokens(keep, at, offsets, kinds)


def gather(
    x: Tensor, tokens: Tokens, batch: int | None, sequence: int | None, merged: int | None, single: Sequence[int]
) -> Tensor:
    """x with its tokens first: [T, its other dimensions]. A dimension it lacks counts for all."""
    if merged is not None:
        return x.index_select(merged, tokens.at).movedim(merged, 0)
    for dim in sorted(single, reverse=True):
        x = x.squeeze(dim)
    batch = None if batch is None else batch - sum(dim < batch for dim in single)
    sequence = None if sequence is None else sequence - sum(dim < sequence for dim in single)
    long = tokens.keep.shape[1]
    if batch is None or sequence is None:
        index = tokens.at % long if batch is None else tokens.at // long
        only = sequence if batch is None else batch
        assert only is not None
        return x.index_select(only, index).movedim(only, 0)
    return x.movedim((batch, sequence), (0, 1)).flatten(0, 1).index_select(0, tokens.at)


def scatter(x: Tensor, tokens: Tokens, batch: int | None, sequence: int | None, merged: int | None) -> Tensor:
    """The inverse of gather: zeros where tokens were left out."""
    whole = x.new_zeros(tokens.keep.numel(), *x.shape[1:]).index_copy(0, tokens.at, x)
    if merged is not None:
        return whole.movedim(0, merged)
    assert batch is not None and sequence is not None
    return whole.unflatten(0, tokens.keep.shape).movedim((0, 1), (batch, sequence))

"""Packed texts as the kernels of attention see them: where each lies, what its tokens see, and its dropout.

`attend` and `attend_backward` are softmax attention of one text in plain torch, in the dtype of their operands.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

FULL, CAUSAL, MASKED = range(3)
HIDDEN = -1e30
"""What is added to a score and is no larger leaves nothing of it."""
Text = tuple[int, int, int]
"""Its number, its first row, and where it ends."""


def texts(offsets: Tensor, rows: int) -> list[Text]:
    """The texts that have rows."""
    ends = offsets.tolist()
    if not ends or ends[0] != 0 or ends[-1] != rows or any(end < begin for begin, end in pairwise(ends)):
        raise ValueError(f"offsets must never decrease from 0 to the {rows} rows of q, got {ends[:16]}")
    return [(b, begin, end) for b, (begin, end) in enumerate(pairwise(ends)) if begin < end]


def rows(x: Tensor) -> Tensor:
    """x[T, heads, width] whose numbers of a head lie side by side: what flash attention reads."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class Sight:
    """What the tokens of a text see: all of it (kind 0), what comes before (1), or what a mask says (2)."""

    def __init__(self, kind: Tensor, mask: Tensor | None, tokens: Tensor | None) -> None:
        self.kind, self.mask, self.tokens = int(kind), mask, tokens
        if self.kind not in (FULL, CAUSAL, MASKED):
            raise ValueError(f"kind must be 0 (full), 1 (causal) or 2 (masked), got {self.kind}")
        if self.kind == MASKED and (mask is None or tokens is None):
            missing = "mask" if mask is None else "tokens"
            raise ValueError(f"{missing} must be given where kind is 2 (masked), got None")

    def places(self, text: Text, count: int) -> Tensor:
        """int64[tokens]: the rows and columns of the mask that belong to the tokens of a text, of `count` texts."""
        assert self.mask is not None and self.tokens is not None
        b, begin, end = text
        self._check_mask(count)
        size = self.mask.shape[3]
        places = self.tokens[begin:end] - b * size
        low, high = (int(bound) for bound in places.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"tokens of text {b} must be {b} * {size} + places in [0, {size}), got {self.tokens[begin:end][:16]}"
            )
        return places

    def all_places(self, offsets: Tensor) -> Tensor:
        """Those of all texts."""
        assert self.mask is not None and self.tokens is not None
        count, size = len(offsets) - 1, self.mask.shape[3]
        self._check_mask(count)
        numbers = torch.repeat_interleave(torch.arange(count, device="cpu"), offsets.diff())
        places = self.tokens - numbers * size
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size:
            for text in texts(offsets, len(places)):
                self.places(text, count)
        return places

    def _check_mask(self, count: int) -> None:
        assert self.mask is not None
        if len(self.mask) not in (1, count):
            raise ValueError(f"mask must be of 1 text or of all {count}, got shape {tuple(self.mask.shape)}")
        if self.mask.shape[2] not in (1, self.mask.shape[3]):
            raise ValueError(f"mask must have 1 row or as many as columns, got shape {tuple(self.mask.shape)}")

    def bias(self, text: Text, count: int, like: Tensor) -> Tensor | None:
        """[1 or heads, tokens, tokens] of the dtype of `like`, to be added to scores; None: nothing."""
        size = text[2] - text[1]
        if self.kind == FULL:
            return None
        if self.kind == CAUSAL:
            return like.new_full((1, size, size), -torch.inf).triu_(1)
        assert self.mask is not None
        at = self.places(text, count)
        mine = self.mask[text[0] if len(self.mask) > 1 else 0]
        rows = mine.index_select(1, at) if mine.shape[1] > 1 else mine.expand(-1, size, -1)
        seen = rows.index_select(2, at)
        if seen.dtype != torch.bool:
            return seen.to(like.dtype)
        return like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)

    def add_gradient(self, into: Tensor, text: Text, count: int, gradient: Tensor) -> None:
        """Add the gradient [heads, tokens, tokens] by the scores of a text to that by the mask."""
        at = self.places(text, count)
        if into.shape[1] == 1:
            gradient = gradient.sum(0, keepdim=True)
        if into.shape[2] == 1:
            gradient, rows = gradient.sum(1, keepdim=True), at.new_zeros(1)
        else:
            rows = at
        into[text[0] if len(into) > 1 else 0, :, rows[:, None], at[None]] += gradient.to(into.dtype)


class Dropout:
    """Which weights of a text are kept, and times what: the same numbers for one seed, texts being asked in order."""

    def __init__(self, seed: Tensor | None, share: float, like: Tensor) -> None:
        self.share = share
        self.numbers: torch.Generator | None = None
        if share > 0:
            if seed is None:
                raise ValueError(f"seed must be given where dropout is {share}, got None")
            self.numbers = torch.Generator(like.device).manual_seed(int(seed))

    def kept(self, heads: int, count: int, like: Tensor) -> Tensor | None:
        if self.numbers is None:
            return None
        drawn = torch.rand(heads, count, count, generator=self.numbers, dtype=torch.float32, device=like.device)
        return (drawn >= self.share).to(like.dtype).mul_(1 / (1 - self.share) if self.share < 1 else 0)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    groups = q.unflatten(0, (len(k), -1)) * scale
    scores = (groups @ k[:, None].mT).flatten(0, 1)
    if bias is None:
        return scores
    # Beside so low a number the score itself is lost in float32, here too; its gradient is not.
    return torch.where(bias > HIDDEN, scores + bias, bias + (scores - scores.detach()))


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kept: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Of q[H, n, d], k[Hk, m, d], v[Hk, m, dv]: the result [H, n, dv], and log(sum(exp(scores))) [H, n].

    A row that sees nothing is zero.
    """
    scores = _scores(q, k, bias, scale)
    top = scores.detach().amax(-1, keepdim=True) if scores.numel() else scores.new_zeros(*scores.shape[:2], 1)
    weights = torch.exp(scores - top.where(top > -torch.inf, 0))
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.where(top > -torch.inf, 1)
    lse = (top + total.log()).squeeze(-1)
    if kept is not None:
        weights = weights * kept
    return (weights.unflatten(0, (len(k), -1)) @ v[:, None]).flatten(0, 1), lse


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, kept: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients by q, k, v and the scores."""
    heads = (len(k), -1)
    weights = _weights(_scores(q, k, bias, scale), lse)
    by_weight = (dout.unflatten(0, heads) @ v[:, None].mT).flatten(0, 1)
    mean = (dout * out).sum(-1, keepdim=True)
    if kept is not None:
        by_weight = by_weight * kept
    by_score = weights * (by_weight - mean)
    used = weights if kept is None else weights * kept
    dv = (used.unflatten(0, heads).mT @ dout.unflatten(0, heads)).sum(1)
    scaled = by_score.unflatten(0, heads) * scale
    dq = (scaled @ k[:, None]).flatten(0, 1)
    dk = (scaled.mT @ q.unflatten(0, heads)).sum(1)
    return dq, dk, dv, by_score


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return torch.exp(scores - lse.where(lse > -torch.inf, 0)[..., None])

"""Attention that computes only the present tiles of the score matrix: a sampled product, a softmax, a sparse product.

    S = sample(Q K^T)      P = exp(S - max of each row)      O = P V / (P 1)

The heads of a batch are one block-diagonal matrix, so that each of the two products is one call; the row sums P 1 are
one more column of V.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from gossamer import ops
from gossamer.measure import clock
from gossamer.nn.snapshot import Snapshot
from gossamer.ops.autograd import wants_gradient
from gossamer.ops.registration import HALF
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern, block_diagonal
from gossamer.pattern.algebra import slot_rows
from gossamer.pattern.check import is_open
from gossamer.planner import Tuner
from gossamer.planner.tuner.trial import DENSE

MOST_SCORES = 1 << 24
"""Elements of a dense mask, bool, that are still made to try the dense product."""

_QUESTION, _SPARSE = "attention", "sparse"
_CALL = 2e-6  # seconds of Python around a call that asks


@dataclass(frozen=True, eq=False)
class AttentionIndex:
    """Patterns of heads laid along the diagonal of one matrix, with what the products and the softmax read.

    Attributes:
        pattern: [heads * queries, heads * keys] in whole tiles: queries and keys are padded to them.
        transposed: its transposed index.
        row: int64[capacity], the tile row of each slot; in slack slots the number of tile rows.
        seen: bool[capacity, bm, bn], the scores that take part.
        tokens: (queries, keys) before padding. heads: how many.
    """

    pattern: Pattern
    transposed: ops.Transposed
    row: Tensor
    seen: Tensor
    tokens: tuple[int, int]
    heads: int

    @classmethod
    @torch.inference_mode(False)  # what is made there serves training too
    def of(cls, patterns: Pattern | Sequence[Pattern], copies: int, *, causal: bool = False) -> AttentionIndex:
        """Index `copies` times the given heads, as in a batch. Build it once: counting the tiles waits for the device.

        Args:
            patterns: bool structure of [queries, keys] for all heads (one head), or one for each.
            causal: within the present tiles, a query sees no key after it.

        Raises:
            ValueError: patterns of different shapes or tiles.
        """
        heads = _each(patterns)
        (queries, keys), (bm, bn), (rows, cols) = heads[0].shape, heads[0].tile, heads[0].grid
        # A graph cannot depend on the count: there the slack of the heads stays.
        room = copies * sum(head.capacity for head in heads) if torch.compiler.is_compiling() else None
        pattern = block_diagonal(heads, copies=copies, capacity=room)
        row = slot_rows(pattern.row_offsets(), pattern.capacity)
        query = (row % max(rows, 1) * bm).view(-1, 1, 1) + torch.arange(bm, device=row.device).view(1, -1, 1)
        column = pattern.indices.to(torch.int64) % max(cols, 1)
        key = (column * bn).view(-1, 1, 1) + torch.arange(bn, device=row.device)
        seen = (query < queries) & (row < pattern.grid[0]).view(-1, 1, 1) & (key < keys)
        if causal:
            seen = seen & (key <= query)
        return cls(pattern, ops.transpose(pattern), row, seen, (queries, keys), len(heads) * copies)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | Sequence[Pattern] | AttentionIndex,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v over the present tiles of the scores. Differentiable in q, k and v.

    Args:
        q: [..., heads, queries, d]; k: [..., heads, keys, d]; v: [..., heads, keys, e]; floats of one dtype.
        pattern: which tiles of [queries, keys] are attended, the same for all heads or one for each; or an
            `AttentionIndex` of as many heads as q has matrices, to index once for many calls.
        causal: a query sees no key after it, within present tiles. (Part of an `AttentionIndex`.)
        scale: of the scores; None for 1 / sqrt(d).

    Returns:
        [..., heads, queries, e] in q's dtype. A query that sees no key gets zeros (scaled_dot_product_attention gives
        NaN). bfloat16 and float16 on a CPU: scores, weights and sums are float32, and the result is rounded once.

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit.

    >>> q = k = v = torch.randn(2, 4, 8)
    >>> local = Pattern.from_mask(torch.eye(4).bool(), (2, 2))
    >>> block_sparse_attention(q, k, v, local).shape
    torch.Size([2, 4, 8])
    """
    if k.shape[:-2] != q.shape[:-2] or v.shape[:-1] != k.shape[:-1] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"q, k and v must have shapes [..., queries, d], [..., keys, d] and [..., keys, e], got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"q, k and v must have one float dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    matrices = math.prod(q.shape[:-2])
    if not isinstance(pattern, AttentionIndex):
        each = _each(pattern)
        if not isinstance(pattern, Pattern) and (q.dim() < 3 or len(each) != q.shape[-3]):
            raise ValueError(f"pattern must be one, or one for each head of q {tuple(q.shape)}, got {len(each)}")
        pattern = AttentionIndex.of(each, matrices // len(each), causal=causal)
    if (matrices, q.shape[-2], k.shape[-2]) != (pattern.heads, *pattern.tokens):
        raise ValueError(
            f"pattern is for {pattern.heads} heads of {pattern.tokens} queries and keys, got {matrices} of "
            f"{(q.shape[-2], k.shape[-2])}"
        )
    index, (bm, bn) = pattern, pattern.pattern.tile
    shape, dtype = (*q.shape[:-1], v.shape[-1]), q.dtype
    if dtype in HALF and q.device.type == "cpu":  # products run in float32 there, so let scores and weights be it too
        q, k, v = q.float(), k.float(), v.float()
    q = q * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale)
    ones = v.new_ones(*v.shape[:-1], 1)
    q, k, v = _stacked(q, bm), _stacked(k, bn), _stacked(torch.cat([v, ones], -1), bn)
    scores = ops.sdd(q, k.t(), index.pattern, transposed=index.transposed).masked_fill(~index.seen, -math.inf)
    weights = (scores - _row_max(scores.detach(), index)).exp()
    o = ops.dsd(weights, index.pattern, v, transposed=index.transposed)
    o = o.view(matrices, q.shape[0] // max(matrices, 1), o.shape[1])[:, : index.tokens[0]]
    total = o[..., -1:]
    return (o[..., :-1] / torch.where(total > 0, total, 1)).reshape(shape).to(dtype)


def _each(patterns: Pattern | Sequence[Pattern]) -> list[Pattern]:
    each = list(patterns) if isinstance(patterns, Sequence) else [patterns]
    if not each or not all(isinstance(one, Pattern) for one in each):
        raise TypeError(f"pattern must be a gossamer.Pattern, or one for each head, got {type(patterns).__name__}")
    return each


def _stacked(x: Tensor, side: int) -> Tensor:
    """[..., tokens, d] -> [matrices * padded tokens, d]."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % side)).flatten(0, -2)


def _row_max(scores: Tensor, index: AttentionIndex) -> Tensor:
    """[capacity, bm, 1]: the largest score of each row of the matrix, 0 where it sees nothing."""
    rows, side = index.pattern.grid[0], index.pattern.tile[0]
    row = index.row.unsqueeze(1).expand(-1, side)
    best = scores.new_full((rows + 1, side), -math.inf).scatter_reduce_(0, row, scores.amax(2), "amax")
    return best.masked_fill_(best == -math.inf, 0)[index.row].unsqueeze(2)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same by torch's attention with a mask [queries, keys] or [heads, queries, keys]; without a gradient."""
    dtype = q.dtype
    if dtype in HALF:
        q, k, v = q.float(), k.float(), v.float()
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return torch.where(mask.any(-1, keepdim=True), o, 0).to(dtype)


def _prior(question: str, alternative: str, densities: Mapping[str, float]) -> float:
    """The cost over dense's of a long sequence: a present tile takes three times its share. Trials find the rest."""
    return 1.0 if alternative == DENSE else 0.15 + 3.0 * densities["tiles"]


class BlockSparseAttention(nn.Module):
    """Multi-head self-attention over the present tiles of a pattern, equal to attention under the same mask.

    On a CPU, where no gradient is wanted, a tuner takes torch's dense attention with a mask instead where so many tiles
    are present, or the sequence is so short, that it is faster: first by a rule of thumb, then by what both took. In a
    compiled graph, in training and where a mask would hold more than 2^24 elements it is the sparse products. The two
    differ by rounding, and what is not finite reaches a dense result from places that are not attended, too.

    Args:
        dim: features, a multiple of heads.
        heads: number of heads.
        pattern: [tokens, tokens], the tiles that are attended, for all heads; or one for each head.
        causal: a query sees no key after it, within present tiles.
        bias: of the projections.

    Attributes:
        qkv: nn.Linear(dim, 3 * dim). out: nn.Linear(dim, dim); under autocast the result has its dtype, as theirs.
        tuner: the `gossamer.planner.Tuner` that decides; `tuner.explain()` says why. A copy of the layer has its own.
        heads, pattern, causal: may be assigned, and patterns written in place; what is derived from them follows.

    >>> tokens = torch.arange(8)
    >>> window = Pattern.from_mask((tokens[:, None] - tokens).abs() < 3, (2, 2))
    >>> BlockSparseAttention(16, 2, window, causal=True)(torch.randn(3, 8, 16)).shape
    torch.Size([3, 8, 16])
    """

    _index: tuple[AttentionIndex, tuple[object, ...], Snapshot] | None
    _mask: tuple[AttentionIndex, Tensor] | None

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: Pattern | Sequence[Pattern],
        *,
        causal: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.pattern = heads, causal, pattern
        self.tuner = Tuner({_QUESTION: {_SPARSE: "tiles"}}, _prior, name=_QUESTION, window=1, call=_CALL)
        self._check_heads(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x[batch, tokens, dim] -> [batch, tokens, dim]."""
        check_transforms("gossamer.nn.BlockSparseAttention", x)
        if x.dim() != 3 or x.shape[-1] != self.qkv.in_features:
            raise ValueError(f"x must have shape [batch, tokens, {self.qkv.in_features}], got {tuple(x.shape)}")
        self._check_heads(self.qkv.in_features)
        # autocast may have made it narrower than the weights
        q, k, v = self.qkv(x).to(self.qkv.weight.dtype).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        index = self._index_for(x.shape[0], x.device)
        return self.out(self._attend(q, k, v, index).transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, index: AttentionIndex) -> Tensor:
        if torch.compiler.is_compiling() or not self._asks(q, k, v):
            return block_sparse_attention(q, k, v, index)
        shape = q.shape, q.dtype
        choice = self.tuner.bypassed(shape)
        if choice is not None:
            return self._run(choice, q, k, v, index)
        tiles = index.row.numel() / max(index.heads * math.prod(_each(self.pattern)[0].grid), 1)
        choice = self.tuner.choose(_QUESTION, (DENSE, _SPARSE), shape, {"tiles": tiles})
        begin = clock.now()
        o = self._run(choice, q, k, v, index)
        self.tuner.observe(_QUESTION, choice, clock.now() - begin)
        return o

    def _asks(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        each = 1 if isinstance(self.pattern, Pattern) else self.heads
        return (
            q.is_cpu
            and 0 < each * q.shape[-2] ** 2 <= MOST_SCORES
            and q.numel() > 0
            and not torch._C._len_torch_dispatch_stack()
            and forward_ad._current_level < 0
            and not wants_gradient(q, k, v)
        )

    def _run(self, choice: str, q: Tensor, k: Tensor, v: Tensor, index: AttentionIndex) -> Tensor:
        if choice == _SPARSE:
            return block_sparse_attention(q, k, v, index)
        if self._mask is None or self._mask[0] is not index:
            masks = [pattern.to(q.device).to_mask() for pattern in _each(self.pattern)]
            mask = masks[0] if len(masks) == 1 else torch.stack(masks)
            self._mask = index, mask.tril() if self.causal else mask
        return _dense(q, k, v, self._mask[1])

    def _check_heads(self, dim: int) -> None:
        if self.heads < 1 or dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim}, heads={self.heads}")
        each = _each(self.pattern)
        if not isinstance(self.pattern, Pattern) and len(each) != self.heads:
            raise ValueError(f"pattern must be one, or one for each of {self.heads} heads, got {len(each)}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("pattern", "causal", "heads"):
            self._index = self._mask = None

    def _index_for(self, batch: int, device: torch.device) -> AttentionIndex:
        """The index for a batch: that of the last call, unless it would be another one now.

        A graph that leaves the batch open makes its own in each call: the one of a call is of one batch.
        """
        each = _each(self.pattern)
        if is_open(batch):
            return self._made(each, batch, device)
        made_of = batch, device, *((p.shape, p.tile, p.offsets is None) for p in each)
        tensors = [x for p in each for x in (p.offsets, p.indices) if x is not None]
        rule = "a pattern must not be written after the attention that holds it was compiled: assign a new one"
        if self._index is not None and self._index[1] == made_of and self._index[2].is_of(*tensors, rule=rule):
            return self._index[0]
        index = self._made(each, batch, device)
        self._index = index, made_of, Snapshot(*tensors)
        return index

    def _made(self, each: Sequence[Pattern], batch: int, device: torch.device) -> AttentionIndex:
        return AttentionIndex.of([p.to(device) for p in each], batch * self.heads // len(each), causal=self.causal)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_mask": None}  # a copy makes its own

"""JoinedHead: heads side by side, each over some of the labels, that are one head to everybody else.

Inside, labels lie in an order of their own: those of the first part, then those of the second. So the most frequent
labels can read all inputs while the many rare ones read few, and labels that are alike can share theirs. Outside, a
label has the number that it always had.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.ops.fan_in.topk import merge_topk
from gossamer.xmc.data.csr import Csr, index_type
from gossamer.xmc.heads import saved
from gossamer.xmc.heads.base_head import Head, checked_sets, checked_x, within
from gossamer.xmc.heads.growth import Growth
from gossamer.xmc.heads.store import Stored, StoreError


class JoinedHead(Head):
    """The labels of `parts`, one part after the other; `order` says which label each of them is.

    Args:
        parts: heads of the same width.
        order: integers [labels], a permutation: order[i] is the label that the parts know as the i-th of all.

    Attributes:
        parts: the heads. order: int32[labels] (int64 beyond 2**31). begins: where each part begins.

    Memory: that of the parts, 4 bytes a label for the order, and 4 more for its inverse once `step` was called.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: a dense head for frequent labels and a shared tail as in HASTE (arXiv 2606.01117).

    >>> from gossamer.xmc import FusedHead
    >>> head = JoinedHead([FusedHead(8, 1, fan_in=8), FusedHead(8, 3, fan_in=2)], torch.tensor([2, 0, 1, 3]))
    >>> grad_x, loss = head.step(torch.randn(2, 8), [[2], [0, 3]], lr=0.1)
    >>> head.topk(torch.randn(2, 8), k=4)[1].sort(1).values.tolist()
    [[0, 1, 2, 3], [0, 1, 2, 3]]
    """

    kind = "joined"
    order: Tensor

    def __init__(self, parts: Sequence[Head], order: Tensor) -> None:
        super().__init__()
        if not parts or any(part.width != parts[0].width for part in parts):
            raise ValueError(f"parts must be heads of one width, got {[part.width for part in parts]}")
        self.width, self.labels = parts[0].width, sum(part.labels for part in parts)
        self.ranks = parts[0].ranks
        if not isinstance(order, Tensor) or order.dtype not in (torch.int32, torch.int64) or order.dim() != 1:
            what = f"{order.dtype}{list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
            raise TypeError(f"order must be integers [{self.labels}], got {what}")
        if len(order) != self.labels:
            raise ValueError(f"order must have the {self.labels} labels of the parts, got {len(order)}")
        self.parts = nn.ModuleList(parts)
        self.register_buffer("order", order.to(index_type(self.labels)))

    @property
    def steps(self) -> Any:
        return self.placed[0][0].steps

    @property
    def placed(self) -> list[tuple[Head, int, int]]:
        """Each part and the labels [begin, end) inside that it has."""
        out, begin = [], 0
        for part in self.parts:
            assert isinstance(part, Head)
            out.append((part, begin, begin + part.labels))
            begin += part.labels
        return out

    @cached_property
    def place(self) -> Tensor:
        """The inverse of `order`: the number inside of each label.

        Raises:
            ValueError: `order` is no permutation.
        """
        order = self.order.long()
        place = torch.full_like(order, -1)
        if bool(((order < 0) | (order >= self.labels)).any()):
            raise ValueError(f"order must name the labels 0 to {self.labels - 1}, each once")
        place[order] = torch.arange(self.labels, device=order.device)
        if bool((place < 0).any()):
            raise ValueError(f"order must name the labels 0 to {self.labels - 1}, each once")
        return place.to(self.order.dtype)

    def inside(self, labels: Csr) -> Csr:
        """Label sets by the numbers inside, ascending in each row."""
        labels.validate()
        found = self.place[labels.indices.long()].long()
        row = torch.repeat_interleave(torch.arange(labels.shape[0], device="cpu"), labels.counts())
        return Csr(labels.offsets, (row * self.labels + found).sort().values - row * self.labels, None, labels.shape)

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        labels: Csr | Sequence[Sequence[int]],
        lr: float,
        *,
        features: Csr | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, float]:
        """As `FusedHead.step`: one step of every part on its labels; gradients and losses are added up."""
        x = checked_x(x, self.width, features)
        inside = self.inside(checked_sets("labels", labels, len(x), self.labels))
        grad_x, loss = torch.zeros_like(x), 0.0
        for part, begin, end in self.placed:
            grad, share = part.step(x, within(inside, begin, end), lr, features=features, scale=scale)
            grad_x += grad
            loss += share
        return grad_x, loss

    @torch.no_grad()
    def topk(
        self,
        x: Tensor,
        k: int = 5,
        *,
        features: Csr | None = None,
        exclude: Csr | None = None,
        never: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `FusedHead.topk`, among the labels of all parts; equal scores in order of label as everybody knows it."""
        x = checked_x(x, self.width, features)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be an integer of at least 1, got {k!r}")
        lists = None if exclude is None else self.inside(checked_sets("exclude", exclude, len(x), self.labels))
        if never is not None:
            never = self.place[never[(never >= 0) & (never < self.labels)]].long().sort().values
        # Parts decide between equal scores by the number inside. Where the next one has the score of the last, all
        # labels of that score are needed; that is rare, and then asked of such rows alone.
        scores, ids = self._search(x, features, k + 1, lists, never)
        for row in ((scores[:, k] == scores[:, k - 1]) & (ids[:, k] >= 0)).nonzero().flatten().tolist():
            one, wanted = slice(row, row + 1), k + 1
            mine, words = (None if each is None else each.slice(row, row + 1) for each in (lists, features))
            while True:
                wanted = min(8 * wanted, self.labels + 1)
                found, names = self._search(x[one], words, wanted, mine, never)
                if names[0, -1] < 0 or found[0, -1] != found[0, k - 1]:
                    break
            scores[one], ids[one] = (each[:, : k + 1] for each in (found, names))
        return scores[:, :k].contiguous(), ids[:, :k].contiguous()

    def _search(
        self, x: Tensor, features: Csr | None, k: int, exclude: Csr | None, never: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The k best by the parts' decisions, then by score and label outside."""
        found = []
        for part, begin, end in self.placed:
            lists = None if exclude is None else within(exclude, begin, end)
            mine = None if never is None else never[(never >= begin) & (never < end)] - begin
            scores, ids = part.topk(x, k, features=features, exclude=lists, never=mine)
            found.append((scores, torch.where(ids < 0, -1, self.order.long()[(ids + begin).clamp(min=0)])))
        return merge_topk(found, k)

    def rewire(self, *args: Any, growth: Growth | None = None, **how: Any) -> int:
        """As `FusedHead.rewire`, in each part by itself; one that reads all inputs has nothing to move."""
        went = 0
        if growth is not None:
            growth = replace(growth, labels=self.inside(growth.sets(self.labels)))
        for part, begin, end in self.placed:
            if getattr(part, "fan_in", 0) < self.width:
                mine = None if growth is None else growth.within(begin, end, self.labels)
                went += part.rewire(*args, growth=mine, **how)
        return went

    def set_bias(self, bias: Tensor) -> None:
        """Take float32[labels], in the order of labels outside."""
        for part, begin, end in self.placed:
            part.set_bias(bias[self.order[begin:end].long()])

    def subset(self, labels: Tensor) -> Head:
        """As `FusedHead.subset`, of every part that has some of the labels."""
        inside, parts, orders = self.place[saved.checked_labels(labels, self.labels)].long(), [], []
        for part, begin, end in self.placed:
            where = ((inside >= begin) & (inside < end)).nonzero().flatten()
            if len(where):
                parts.append(part.subset(inside[where] - begin))
                orders.append(where)
        return parts[0] if len(parts) == 1 else JoinedHead(parts, torch.cat(orders))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write everything that training goes on from, whole or not at all; `open_head` reads it."""
        return saved.save_composite(self, directory, {}, {"order": self.order}, [part for part, _, _ in self.placed])

    @classmethod
    def made(cls, stored: Stored, parts: list[Head], where: str | os.PathLike[str]) -> JoinedHead:
        """The head of what `save` wrote and of its parts."""
        try:
            return cls(parts, stored.tensors["order"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where} holds no head of this version: {error}") from error

    def _load_from_state_dict(self, *args: Any) -> None:
        self.__dict__.pop("place", None)
        super()._load_from_state_dict(*args)

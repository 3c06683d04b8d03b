"""What must hold at run time so that leaving tokens out gives the answers of the dense graph.

keep    bool[B, S], True for tokens that are not left out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gossamer.compile.tokens import seen


@dataclass(frozen=True)
class KeptAt:
    """Somebody reads token `at` of every text, as a classifier reads the first, or a slice of them."""

    at: int | tuple[int | None, int | None]

    nodes: tuple[Node, ...] = ()

    def holds(self, keep: Tensor) -> Tensor:
        return keep[:, slice(*self.at) if isinstance(self.at, tuple) else self.at].all()

    def __str__(self) -> str:
        if isinstance(self.at, tuple):
            start, stop = ("" if at is None else at for at in self.at)
            return f"tokens {start}:{stop} of every text are kept, since they are read"
        return f"token {self.at} of every text is kept, since it is read"


@dataclass(frozen=True)
class KeptWhere:
    """Somebody reads the tokens `x[rows, columns]`, as a classifier behind a decoder reads the last of each text."""

    nodes: tuple[Node, ...]
    index: tuple[Any, ...]
    """Entries of the index: (place in `nodes`,) for a tensor, a number, or None for all."""

    def holds(self, keep: Tensor, *values: Tensor) -> Tensor:
        index = tuple(
            values[each[0]] if isinstance(each, tuple) else slice(None) if each is None else each for each in self.index
        )
        return keep[index].all()

    def __str__(self) -> str:
        return "the tokens that an index reads are kept"


@dataclass(frozen=True)
class ZeroWhereDropped:
    """Somebody multiplies by `nodes[0]` [B, S, ...], so that what is left out counts as nothing."""

    nodes: tuple[Node, ...]
    order: tuple[int, ...]
    """The dimensions of the batch and the sequence in it."""

    def holds(self, keep: Tensor, factor: Tensor) -> Tensor:
        return ~(_by_token(factor, keep, self.order) & ~keep).any()

    def __str__(self) -> str:
        return f"{self.nodes[0].name} is zero at every token that is left out"


@dataclass(frozen=True)
class IgnoredWhereDropped:
    """A loss does not count tokens whose label is `ignored`."""

    nodes: tuple[Node, ...]
    ignored: int

    def holds(self, keep: Tensor, labels: Tensor) -> Tensor:
        return (labels.reshape(keep.shape) == self.ignored).logical_or(keep).all()

    def __str__(self) -> str:
        return f"the loss ignores every token that is left out ({self.nodes[0].name} is {self.ignored} there)"


@dataclass(frozen=True)
class EverybodySees:
    """A token that is kept sees somebody in `nodes[0]`: one that sees nobody may get the mean of all, padding too."""

    nodes: tuple[Node, ...]

    def holds(self, keep: Tensor, mask: Tensor) -> Tensor:
        return (seen(mask).any(3).all(1) | ~keep).all()

    def __str__(self) -> str:
        return f"every token that is kept sees some token in {self.nodes[0].name}"


@dataclass(frozen=True)
class SeesItself:
    """A token that is kept sees itself in `nodes[0]`.

    Where tokens do not see themselves, as in a strictly causal mask, one that nobody sees may still be no padding.
    """

    nodes: tuple[Node, ...]

    def holds(self, keep: Tensor, mask: Tensor) -> Tensor:
        if mask.shape[2] == 1:  # it says of tokens what they are, whoever looks
            return keep.new_ones(())
        return (seen(mask).any(1).diagonal(dim1=1, dim2=2) | ~keep).all()

    def __str__(self) -> str:
        return f"every token that is kept sees itself in {self.nodes[0].name}"


@dataclass(frozen=True)
class UnseenWhereDropped:
    """Another attention reads keys and values of these tokens, and its mask hides those that are left out."""

    nodes: tuple[Node, ...]

    def holds(self, keep: Tensor, mask: Tensor) -> Tensor:
        sees = seen(mask)
        return (~sees.flatten(1, -2).any(1) | keep).all() & sees.any(3).all()

    def __str__(self) -> str:
        return f"{self.nodes[0].name} hides every token that is left out, and not all of a text"


Condition = (
    KeptAt | KeptWhere | ZeroWhereDropped | IgnoredWhereDropped | EverybodySees | SeesItself | UnseenWhereDropped
)


def _by_token(x: Tensor, keep: Tensor, order: tuple[int, ...]) -> Tensor:
    """Whether anything is not zero, for each token."""
    rest = [at for at in range(x.dim()) if at not in order]
    shaped = x.permute(*order, *rest).ne(0)
    return torch.broadcast_to(shaped.flatten(2).any(2), keep.shape)

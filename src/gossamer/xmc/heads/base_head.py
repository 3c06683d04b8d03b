"""What a classifier asks of its head, whatever the head consists of."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.ranks import Ranks
from gossamer.xmc.data.csr import Csr


class Head(nn.Module):
    """Scores of `labels` labels for vectors of `width` numbers; `step` trains it, `topk` searches it.

    Implementations: `FusedHead` (the kernels), `JoinedHead` (heads side by side, labels in an order of their own),
    `WideHead` (a layer in front of a head), `ShardedHead` (labels divided among processes).

    Attributes:
        width, labels: sizes. steps: int64 [], steps taken.
        ranks: the processes that its labels are divided among.
    """

    width: int
    labels: int
    steps: Any
    ranks: Ranks = Ranks()

    @abstractmethod
    def step(
        self,
        x: Tensor,
        labels: Csr | Sequence[Sequence[int]],
        lr: float,
        *,
        features: Csr | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, float]:
        """One step of training: (gradient of the loss by x, loss), as `FusedHead.step`."""

    @abstractmethod
    def topk(
        self,
        x: Tensor,
        k: int = 5,
        *,
        features: Csr | None = None,
        exclude: Csr | None = None,
        never: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(scores, ids) of the k best labels of each row, as `FusedHead.topk`."""

    @abstractmethod
    def rewire(self, *args: Any, **how: Any) -> int:
        """Replace weak connections, as `FusedHead.rewire`; how many were replaced."""

    @abstractmethod
    def set_bias(self, bias: Tensor) -> None:
        """Take float32[labels] as the bias, where labels have one."""

    @abstractmethod
    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write everything that training goes on from, whole or not at all; `open_head` reads it."""

    @abstractmethod
    def subset(self, labels: Tensor) -> Head:
        """A head with copies of these labels only, numbered in the order given (int64[n])."""


def checked_x(x: Tensor, width: int, features: Csr | None = None) -> Tensor:
    """x[batch, width] as float32, without its graph; of the width, `features` are the last inputs.

    Raises:
        ValueError: it is none, or features are no Csr [batch, ...] with values.
    """
    width -= 0 if features is None else features.shape[1]
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != width or not x.is_floating_point():
        found = f"{x.dtype}{list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be floats [batch, {width}], got {found}")
    if features is not None and (features.values is None or features.shape[0] != len(x)):
        raise ValueError(f"features must have values and {len(x)} rows, as x, got {features}")
    return x.detach().float()


def checked_sets(name: str, labels: Csr | Sequence[Sequence[int]], batch: int, count: int) -> Csr:
    """The label sets of a batch as a Csr [batch, count].

    Raises:
        ValueError: another shape, or a label that is not there.
    """
    if not isinstance(labels, Csr):
        labels = Csr.from_lists(labels, count)
    if labels.shape != (batch, count):
        raise ValueError(f"{name} must be of shape {(batch, count)}, got {labels.shape}")
    return labels


def within(labels: Csr, begin: int, end: int) -> Csr:
    """The labels [begin, end) of each row, numbered from 0."""
    wide = labels.indices.long()  # `end` may be 2^31, one more than int32 holds
    here = (wide >= begin) & (wide < end)
    before = torch.nn.functional.pad(here.cumsum(0), (1, 0))
    mine = (wide[here] - begin).to(labels.indices.dtype)
    return Csr(before[labels.offsets], mine, None, (labels.shape[0], end - begin))

"""Batches of tokens for training, one for each step, whatever they come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = Tensor | Mapping[str, Tensor]
_KNOWN = ("input_ids", "attention_mask", "labels")
_FEWEST, _ENOUGH = 8, 4096
"""Batches, and tokens, of the last steps by which a policy is settled."""
IGNORED = -100
"""A label that no loss counts."""


class Batches:
    """The batch of each step; what is too short begins again.

    Args:
        data: a sequence of batches, or something to iterate over: int64[texts, tokens], or dicts with input_ids and
            perhaps attention_mask and labels.
        steps: how many are needed; None: as many as there are.
        first: the step to begin with.
        vocabulary: tokens that the model knows.

    Raises:
        ValueError: there are none, an iterator ends before `steps`, or one is no batch of the model's tokens.
    """

    def __init__(self, data: Iterable[Batch], steps: int | None, *, vocabulary: int) -> None:
        if isinstance(data, (Tensor, Mapping, str)):
            raise ValueError(f"data must be a sequence of batches or an iterator, got one {type(data).__name__}")
        if steps is None and not isinstance(data, Sequence):
            data = list(data)
        self._data, self._vocabulary = data, vocabulary
        self._sequence = data if isinstance(data, Sequence) else None
        if self._sequence is not None and not len(self._sequence):
            raise ValueError("data must have at least one batch, got none")
        self.steps = len(self._sequence or ()) if steps is None else steps
        self._iterator: Iterator[Batch] = iter(())
        self._taken, self._this_time = 0, 0
        self._ahead: dict[str, Tensor] | None = None
        self._recent: deque[dict[str, Tensor]] = deque()

    def take(self, step: int) -> dict[str, Tensor]:
        """The batch of a step; an iterator is asked for those of later and later ones."""
        if self._sequence is not None:
            return self._checked(self._sequence[step % len(self._sequence)])
        if step + 1 == self._taken and self._ahead is not None:
            return self._ahead
        while self._taken <= step:
            batch = self._following()
        self._ahead = batch
        return batch

    def recent(self) -> list[dict[str, Tensor]]:
        """Different batches of the last steps: eight, or more where those have fewer than 4,096 tokens together."""
        if self._sequence is None:
            self.take(self.steps - 1)
            return list(self._recent)
        found: deque[dict[str, Tensor]] = deque()
        most = min(self.steps, len(self._sequence))
        while len(found) < most and not _enough(found):
            found.appendleft(self.take(self.steps - 1 - len(found)))
        return list(found)

    def _following(self) -> dict[str, Tensor]:
        for again in (False, True):
            for given in self._iterator:
                batch = self._checked(given)
                self._taken, self._this_time = self._taken + 1, self._this_time + 1
                self._recent.append(batch)
                while _enough(list(self._recent)[1:]):
                    self._recent.popleft()
                return batch
            if again or (self._taken and not self._this_time):
                break
            self._iterator, self._this_time = iter(self._data), 0
        had = f"it ended after {self._taken} of {self.steps} steps" if self._taken else "got none"
        raise ValueError(f"data must have at least one batch, and one for each step or be iterable again; {had}")

    def _checked(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Any] = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
        ids = found.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype != torch.int64 or not len(ids):
            what = f"{ids.dtype}{list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"a batch must have input_ids int64[texts, tokens], got {what}")
        if ids.shape[1] < 2:
            raise ValueError(f"a batch must have texts of at least 2 tokens, got {ids.shape[1]}")
        if int(ids.min()) < 0 or int(ids.max()) >= self._vocabulary:
            raise ValueError(
                f"a batch must have tokens from 0 to {self._vocabulary - 1}, got {int(ids.min())} to {int(ids.max())}"
            )
        for name, value in found.items():
            if name not in _KNOWN:
                raise ValueError(f"a batch has {name!r}, expected {', '.join(_KNOWN)}")
            if not isinstance(value, Tensor) or value.shape != ids.shape:
                raise ValueError(f"{name} of a batch must have shape {list(ids.shape)}, got {_shape(value)}")
        return found


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """int64[texts, tokens - 1]: what comes next, IGNORED where that is padding."""
    labels = batch.get("labels", batch["input_ids"])
    mask = batch.get("attention_mask")
    return (labels if mask is None else labels.masked_fill(mask == 0, IGNORED))[:, 1:]


def _enough(batches: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether these say what decisions cost."""
    return len(batches) >= _FEWEST and sum(each["input_ids"].numel() for each in batches) >= _ENOUGH


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__

"""Which connections would help a head most, of some that it does not have: the gradient of the loss by their weights.

A connection that is not there has the weight zero, and its gradient is that of any other weight. So a copy of some
labels is made that reads a few more inputs, of weight zero; one step of plain gradient descent with rate 1 leaves minus
the gradient there. Neither a dense gradient nor logits are ever in memory, and bits depend on no number of threads,
because those of `fan_in_step` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.ops.fan_in.step import Loss, fan_in_step
from gossamer.ops.registration import Backend
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.heads.base_head import checked_sets, within

_BLOCK = 1 << 22  # values that are copied at once


@dataclass(frozen=True, eq=False)
class Growth:
    """Examples by which a head chooses new connections among a few that are drawn for each row.

    Args:
        x: float[examples, width]; the more examples, the more often a rare label has one of its own among them.
        labels: of each example, a `gossamer.xmc.data.Csr` of shape (examples, labels) or a list of numbers for each.
        candidates: inputs that each row looks at; all that it does not read where there are no more.
        features: as of `FusedHead.step`.

    Raises:
        ValueError: naming the argument.
    """

    x: Tensor
    labels: Csr | Sequence[Sequence[int]]
    candidates: int
    features: Csr | None = None

    def __post_init__(self) -> None:
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"candidates must be an integer of at least 1, got {self.candidates!r}")

    def sets(self, labels: int) -> Csr:
        """The label sets, of so many labels; ValueError where they are others."""
        return checked_sets("labels", self.labels, len(self.x), labels)

    def within(self, begin: int, end: int, labels: int) -> Growth:
        """The same for the labels [begin, end) of so many, numbered from 0."""
        return Growth(self.x, within(self.sets(labels), begin, end), self.candidates, self.features)


def candidate_scores(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, positives: Tensor, *, loss: Loss, group: int,
    backend: Backend | None,
) -> Tensor:  # fmt: skip
    """|gradient of the loss| by weights that are zero, of labels that share inputs the sum.

    Args:
        x: float32[batch, cols]. values: [labels, k]. bias: float32[labels] or None.
        indices: [ceil(labels / group), k + n]: what is read, and n inputs more.
        positives: int64 ascending, label * batch + row.

    Returns:
        float32[ceil(labels / group), n].
    """
    (labels, k), (rows, both), batch = values.shape, indices.shape, len(x)
    scores = torch.empty(rows, both - k, dtype=torch.float32, device=x.device)
    step = max(_BLOCK // (both * group), 1)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        part = slice(begin * group, min(end * group, labels))
        weights = pad(values[part].float(), (0, both - k))
        shift = None if bias is None else bias[part].clone()
        bounds = positives.new_tensor([part.start * batch, part.stop * batch])
        first, last = torch.searchsorted(positives, bounds).tolist()
        mine = positives[first:last] - part.start * batch
        fan_in_step(
            x, weights, indices[begin:end], shift, [], mine, lr=1.0, step=1, loss=loss, group=group, backend=backend
        )
        gradient = pad(weights[:, k:].abs(), (0, 0, 0, (end - begin) * group - len(weights)))
        scores[begin:end] = gradient.view(end - begin, group, both - k).sum(1)
    return scores

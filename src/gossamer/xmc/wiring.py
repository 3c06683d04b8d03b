"""What each label reads when training begins: the features that tell most of it, and part of the embedding.

Of the features that an encoder passes on as they are, a label reads those with the largest

    | sum of (x_j - mean of x_j) over its positive examples |,

which is the gradient of the loss by a weight that is not there, for a label that still predicts its frequency: RigL's
criterion, for all inputs at once and exactly, from the sparse product of labels and features. The rest is drawn.

Source: Evci et al., "Rigging the lottery", 2020 (arXiv 1911.11134), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gossamer.ops.fan_in.connections import draw_values
from gossamer.ops.fan_in.rewire import fan_in_indices
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.heads.base_head import Head, within
from gossamer.xmc.heads.head import FusedHead
from gossamer.xmc.heads.joined import JoinedHead
from gossamer.xmc.heads.sharded import ShardedHead

BLOCK = 1 << 22  # features of positive examples that are in memory together
ROWS = 1 << 12  # rows of connections that are put together at a time
DRAWN, SHUFFLED = 1, 2  # added to the seed: what is drawn here is not what the head drew


def telling(features: Csr, labels: Csr, most: int, *, group: int = 1) -> Tensor:
    """The features that tell most of each label.

    Args:
        features: [examples, columns] with values.
        labels: [examples, labels].
        most: how many for each row.
        group: labels that share a row of connections; their gradients are added.

    Returns:
        int64[ceil(labels / group), most], best first; -1 where the positive examples have no more. Of equal ones the
        lower column.

    >>> x = Csr(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 2]), torch.ones(3), (2, 3))
    >>> telling(x, Csr.from_lists([[0], [1]], columns=2), 2).tolist()
    [[0, -1], [2, 0]]
    """
    out = np.full((-(-labels.shape[1] // group), most), -1)
    for unit, rank, column in _best(features, labels, most, group):
        out[unit, rank] = column
    return torch.from_numpy(out)


def _best(features: Csr, labels: Csr, most: int, group: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row of connections, rank, column) of what tells most, rows ascending: memory goes with the entries of the data,
    not with the labels that nobody has."""
    assert features.values is not None
    rows, columns = features.shape
    values = features.values.double().numpy()
    mean = np.bincount(features.indices.numpy(), values, columns) / max(rows, 1)
    counts, starts = features.counts().numpy(), features.offsets[:-1].numpy()
    for first, unit, example in _by_label(labels, counts, group):
        # Every feature of every positive example, by (row of connections, column).
        length = counts[example]
        place = np.repeat(starts[example] - np.concatenate(([0], length.cumsum()[:-1])), length) + np.arange(
            length.sum()
        )
        key, which = np.unique(np.repeat(unit, length) * columns + features.indices.numpy()[place], return_inverse=True)
        owner, column = np.divmod(key, max(columns, 1))
        whose, positives = np.unique(unit, return_counts=True)
        gradient = np.abs(
            np.bincount(which, values[place], len(key)) - positives[np.searchsorted(whose, owner)] * mean[column]
        )
        order = np.lexsort((-gradient, owner))
        owner, column = owner[order], column[order]
        rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
        best = rank < most
        yield first + owner[best], rank[best], column[best]


def _by_label(labels: Csr, counts: np.ndarray, group: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first row of connections, row from there on, positive example), so many together as `BLOCK` says."""
    example = np.repeat(np.arange(labels.shape[0]), labels.counts().numpy())
    unit = labels.indices.numpy().astype(np.int64) // group
    order = np.argsort(unit, kind="stable")
    unit, example = unit[order], example[order]
    sums = np.concatenate(([0], counts[example].cumsum()))
    begin = 0
    while begin < len(unit):
        end = max(int(np.searchsorted(sums, sums[begin] + BLOCK, side="right")) - 1, begin + 1)
        if end < len(unit):  # in front of a row that is not whole, unless it is the only one
            whole = int(np.searchsorted(unit, unit[end]))
            end = whole if whole > begin else int(np.searchsorted(unit, unit[begin], side="right"))
        first = int(unit[begin])
        yield first, unit[begin:end] - first, example[begin:end]
        begin = end


def wire(head: Head, features: Csr, labels: Csr, share: float) -> None:
    """As `connect`, whatever the head consists of; labels that read all inputs have nothing to choose.

    Raises:
        TypeError: a head of another kind.
    """
    if isinstance(head, JoinedHead):
        inside = head.inside(labels)
        for part, begin, end in head.placed:
            wire(part, features, within(inside, begin, end), share)
    elif isinstance(head, ShardedHead):
        connect(head.head, features, within(labels, head.begin, head.end), share)
    elif isinstance(head, FusedHead):
        connect(head, features, labels, share)
    else:
        raise TypeError(f"head must be a FusedHead, ShardedHead or JoinedHead, got {type(head).__name__}")


def connect(head: FusedHead, features: Csr, labels: Csr, share: float) -> None:
    """Connect a new head: `share` of a label's inputs are the features that tell most of it, at first of weight zero.

    The others are drawn from the numbers that are trained, of which nothing is known yet; where there are none, all
    inputs are chosen. What is still missing is drawn from all inputs.

    Args:
        features: [examples, f] with values: the last f inputs of the head. labels: [examples, head.labels].
        share: from 0 to 1; 0 leaves the head as it was drawn.
    """
    trained = head.width - features.shape[1]
    most = min(round(share * head.fan_in) if trained else head.fan_in, features.shape[1])
    if not share or not most or head.fan_in == head.width:
        return
    none = np.empty(0, np.int64)
    found = [(none, none, none), *_best(features, labels, most, head.group)]
    unit, rank, column = (np.concatenate(part) for part in zip(*found, strict=True))
    for begin in range(0, len(head.indices), ROWS):
        rows, (low, high) = slice(begin, begin + ROWS), np.searchsorted(unit, (begin, begin + ROWS))
        here = head.indices[rows]
        chosen = np.full((len(here), most), -1)
        chosen[unit[low:high] - begin, rank[low:high]] = column[low:high] + trained
        drawn = _drawn(head, trained, begin, len(here))
        wanted = _first_distinct(torch.cat([torch.from_numpy(chosen), drawn, here.long()], 1), head.fan_in)
        head.indices[rows] = wanted.to(torch.int32).to(here.dtype)
        values = head.values[begin * head.group : (begin + len(here)) * head.group]
        values[(wanted >= trained).repeat_interleave(head.group, 0)[: len(values)]] = 0


def _drawn(head: FusedHead, trained: int, begin: int, rows: int) -> Tensor:
    """int64[rows, k]: trained inputs of the rows of connections from `begin` on, in random order."""
    few, row = min(head.fan_in, trained), head.first_label // head.group + begin
    if not few:
        return torch.empty(rows, 0, dtype=torch.int64, device="cpu")
    drawn = fan_in_indices(
        rows * head.group, trained, few, seed=head.seed + DRAWN, first=row * head.group, group=head.group, device="cpu"
    ).long()
    shuffle = torch.empty(rows, few, dtype=torch.float32, device="cpu")
    draw_values(shuffle, seed=head.seed + SHUFFLED, first=row)
    return drawn.gather(1, shuffle.argsort(dim=1, stable=True))


def _first_distinct(wanted: Tensor, k: int) -> Tensor:
    """The first k different numbers of each row that are not negative, ascending.

    >>> _first_distinct(torch.tensor([[7, -1, 7, 3, 5]]), 2).tolist()
    [[3, 7]]
    """
    values, order = wanted.sort(dim=1, stable=True)
    again = torch.zeros_like(values, dtype=torch.bool)
    again[:, 1:] = values[:, 1:] == values[:, :-1]
    order[again | (values < 0)] = wanted.shape[1]
    first = order.argsort(dim=1, stable=True)[:, :k]
    return values.gather(1, first).sort(1).values

"""Balanced clusters of labels, for the auxiliary objective and for labels that share their inputs.

Labels that occur with the same features lie in one cluster. A node of labels is split in halves by 2-means with equal
sizes, again and again (as in PECOS, arXiv 2010.05878, section 3): so that no cluster is large, and none empty.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.data.csr import Csr

DIMENSIONS = 256  # features are projected to so many numbers
_ROUNDS = 8  # of 2-means at most


def balanced_clusters(vectors: Tensor, clusters: int, *, seed: int = 0) -> Tensor:
    """int64[labels]: the cluster of each label; sizes differ by one at most.

    Args:
        vectors: float32[labels, dimensions], what labels are like.
        clusters: how many, at most as many as labels.
        seed: of the first centres.

    Raises:
        ValueError: `clusters` is below 1 or above the number of labels, or a vector is not finite.

    >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> a, b, c, d = balanced_clusters(x, 2).tolist()
    >>> a == b != c == d
    True
    """
    labels = len(vectors)
    if not 1 <= clusters <= labels:
        raise ValueError(f"clusters must be from 1 to the {labels} labels, got {clusters}")

    def left(members: int, count: int) -> int:  # so that every cluster gets the floor or the ceiling of labels/clusters
        least, spare = divmod(members, count)
        return count // 2 * least + min(count // 2, spare)

    return _divided(vectors, clusters, left, seed)


def similar_order(vectors: Tensor, group: int, *, seed: int = 0) -> Tensor:
    """int64[labels]: the labels in an order whose runs of `group` are alike; only the last run may be shorter.

    Args:
        vectors: float32[labels, dimensions], what labels are like.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    >>> sorted(similar_order(x, 2).view(2, 2).tolist())
    [[0, 2], [1, 3]]
    """
    count = -(-len(vectors) // group)
    if count <= 1:
        return torch.arange(len(vectors), device="cpu")
    found = _divided(vectors, count, lambda members, count: count // 2 * group, seed)
    return found.argsort(stable=True)


def _divided(vectors: Tensor, clusters: int, left: Callable[[int, int], int], seed: int) -> Tensor:
    """The cluster of each label; left(members, clusters) members go to the first half of the clusters of a node."""
    if not bool(vectors.isfinite().all()):
        raise ValueError("vectors must be finite, got NaN or infinity")
    vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
    out = torch.empty(len(vectors), dtype=torch.int64, device="cpu")
    todo = [(torch.arange(len(vectors), device="cpu"), 0, clusters)]
    while todo:
        members, first, count = todo.pop()
        if count == 1:
            out[members] = first
            continue
        half = count // 2
        near = _halved(vectors[members], left(len(members), count), seed=(seed, first, count))
        todo += [(members[near], first, half), (members[~near], first + half, count - half)]
    return out


def _halved(x: Tensor, size: int, *, seed: tuple[int, ...]) -> Tensor:
    """bool[n] with `size` True: those nearer to one of two centres, ties to the first."""
    start = torch.from_numpy(np.random.default_rng(seed).choice(len(x), 2, replace=False))
    centre = x[start[0]] - x[start[1]]
    near = torch.zeros(len(x), dtype=torch.bool, device="cpu")
    for _ in range(_ROUNDS):
        order = torch.argsort(x @ centre, descending=True, stable=True)
        new = torch.zeros_like(near)
        new[order[:size]] = True
        if torch.equal(new, near):
            break
        near = new
        centre = x[near].mean(0) - x[~near].mean(0)
    return near


def label_vectors(labels: Csr, features: Csr, *, dimensions: int = DIMENSIONS, seed: int = 0) -> Tensor:
    """float32[labels, dimensions]: the mean of the features of each label's examples, through a random projection.

    Args:
        labels: [examples, labels]. features: [examples, width], with or without values.

    >>> y, x = Csr.from_lists([[0], [0, 1]], columns=3), Csr.from_lists([[4], [5]], columns=9)
    >>> label_vectors(y, x, dimensions=4).shape
    torch.Size([3, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    projection = (
        torch.randn(features.shape[1], dimensions, generator=generator, dtype=torch.float32, device="cpu")
        / dimensions**0.5
    )
    weights = None if features.values is None else features.values
    out = torch.zeros(labels.shape[1], dimensions, dtype=torch.float32, device="cpu")
    for begin in range(0, labels.shape[0], 4096):
        rows, sets = features.slice(begin, begin + 4096), labels.slice(begin, begin + 4096)
        near = torch.nn.functional.embedding_bag(
            rows.indices.long(), projection, rows.offsets[:-1], mode="sum",
            per_sample_weights=None if weights is None else rows.values,
        )  # fmt: skip
        owner = torch.repeat_interleave(torch.arange(sets.shape[0], device="cpu"), sets.counts())
        out.index_add_(0, sets.indices.long(), torch.nn.functional.normalize(near, dim=1)[owner])
    return out

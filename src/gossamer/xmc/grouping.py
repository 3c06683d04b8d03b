"""Which labels belong together: clusters from a file, from the caller, or from what the labels' examples are like.

A file has the number of a cluster on each line, a line a label; or it is a matrix [labels, clusters] of
scipy.sparse.save_npz with one entry a row. Clusters are numbered from 0, and none is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc import encoders
from gossamer.xmc.clusters import balanced_clusters, label_vectors, similar_order
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.formats.lines import blocks, refuse
from gossamer.xmc.data.formats.rows import parse_ids
from gossamer.xmc.data.formats.scipy_npz import read_npz
from gossamer.xmc.recipe import Recipe


def clusters_of(how: int | str, examples: Any, inputs: Any, labels: Csr, *, seed: int) -> Tensor | None:
    """int64[labels]: the cluster of each label; None for 0 clusters.

    Args:
        how: so many clusters of equal size, of labels that are alike; or the file that says them.
        examples, inputs, labels: as for `vectors_of`.

    Raises:
        ValueError: more clusters than labels. Malformed, FileNotFoundError: as `read_clusters`.
    """
    if isinstance(how, str):
        return read_clusters(Path(how), labels.shape[1])
    return balanced_clusters(vectors_of(examples, inputs, labels, seed=seed), how, seed=seed) if how else None


def vectors_of(examples: Any, inputs: Any, labels: Csr, *, seed: int) -> Tensor:
    """float32[labels, dimensions]: what labels are like, by the words or features of their examples.

    Args:
        examples: texts or features as given. inputs: the same as the encoder has prepared them.
        labels: the label sets of the examples.
    """
    if not isinstance(inputs, Csr):  # words say more of a label than the vectors of an encoder before training
        words = encoders.make("bow", width=1, words=0)
        words.learn(examples)
        inputs = words.prepare(examples)
    return label_vectors(labels, inputs, seed=seed)


def order_of(recipe: Recipe, examples: Any, inputs: Any, labels: Csr) -> Tensor | None:
    """int64[labels]: the order in which the head holds the labels, the frequent ones first; None: their own.

    Args:
        examples, inputs, labels: as for `vectors_of`.
    """
    top = recipe.frequent_of(labels.shape[1])
    if not top and (recipe.group == 1 or recipe.grouping == "given"):
        return None
    by_frequency = labels.column_counts().argsort(descending=True, stable=True)
    first, rest = by_frequency[:top].sort().values, by_frequency[top:]
    if recipe.group == 1 or recipe.grouping != "frequency":
        rest = rest.sort().values
    if recipe.group > 1 and recipe.grouping == "similar":
        vectors = vectors_of(examples, inputs, labels, seed=recipe.seed)
        rest = rest[similar_order(vectors[rest], recipe.group, seed=recipe.seed)]
    return torch.cat([first, rest])


def read_clusters(path: Path, labels: int) -> Tensor:
    """int64[labels]: the cluster of each label, from a text file (.gz too) or a matrix in .npz.

    Raises:
        Malformed: naming file and line: a label in none or several clusters, another number of labels, more clusters
            than labels, a cluster without labels. FileNotFoundError: there is no file.
    """
    found = _from_matrix(path, labels) if path.suffix == ".npz" else _from_lines(path, labels)
    try:
        return as_clusters(found, labels)
    except ValueError as error:
        refuse(path, None, str(error))


def _from_matrix(path: Path, labels: int) -> Tensor:
    matrix = read_npz(path, values=False)
    if matrix.shape[0] != labels:
        refuse(path, None, f"its shape is {matrix.shape}; expected a row for each of the {labels} labels")
    wrong = (matrix.counts() != 1).nonzero()
    if len(wrong):
        at = int(wrong[0])
        refuse(path, None, f"label {at} is in {int(matrix.counts()[at])} clusters; expected one")
    return matrix.indices


def _from_lines(path: Path, labels: int) -> Tensor:
    parts, lines = [np.empty(0, np.int64)], 0
    for block in blocks(path):
        rows = parse_ids(block.lines(), path, block.first, labels)
        wrong = np.flatnonzero(rows.counts != 1)
        if len(wrong):
            refuse(path, block.first + int(wrong[0]), f"it has {rows.counts[wrong[0]]} clusters; expected one a label")
        parts.append(rows.ids)
        lines += len(rows.counts)
        if lines > labels:
            refuse(path, labels + 1, f"there is a line more than the {labels} labels; expected one for each")
    if lines < labels:
        refuse(path, None, f"it has {lines} lines; expected one for each of the {labels} labels")
    return torch.from_numpy(np.concatenate(parts))


def as_clusters(given: Any, labels: int) -> Tensor:
    """int64[labels]: the cluster of each label, checked.

    Raises:
        TypeError, ValueError: no integers, another number of labels, a number out of range, a cluster without labels.

    >>> as_clusters([1, 0, 1], 3).tolist()
    [1, 0, 1]
    """
    clusters = torch.as_tensor(given, device="cpu")
    if clusters.is_floating_point() or clusters.is_complex() or clusters.dtype == torch.bool or clusters.dim() != 1:
        raise TypeError(f"clusters must be integers [{labels}], got {clusters.dtype}{list(clusters.shape)}")
    if len(clusters) != labels:
        raise ValueError(f"clusters has {len(clusters)} entries; expected one for each of the {labels} labels")
    clusters = clusters.to(torch.int64)
    outside = ((clusters < 0) | (clusters >= labels)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"label {at} is in the cluster {int(clusters[at])}; expected 0 to {labels - 1}")
    empty = (clusters.bincount() == 0).nonzero()
    if len(empty):
        raise ValueError(
            f"cluster {int(empty[0])} of 0 to {int(clusters.max())} has no label; expected every number in use"
        )
    return clusters

"""The best k of candidate labels, and where they hit: what the metrics are made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.data.csr import Csr


def best(scores: Tensor, ids: Tensor, rows: int, labels: int, k: int, exclude: Csr | None) -> np.ndarray:
    """int64[rows, k]: the k candidates of largest score, ties to the lower id, `labels` where there are none left.

    Args:
        scores, ids: [rows, candidates]; an id of -1 or `labels`, or a score of -inf, is no candidate.
        exclude: Csr [rows, labels] of what is no candidate either.

    Raises:
        ValueError: shapes or types that do not fit, an id out of range or twice in a row, a score that is NaN.
    """
    if ids.dtype not in (torch.int64, torch.int32) or ids.ndim != 2 or len(ids) != rows or scores.shape != ids.shape:
        raise ValueError(
            f"scores are {scores.dtype}{list(scores.shape)} and ids {ids.dtype}{list(ids.shape)}; expected floats and "
            f"integers [{rows}, candidates]"
        )
    if not scores.is_floating_point():
        raise ValueError(f"scores are {scores.dtype}; expected floats")
    value = scores.detach().cpu().double().numpy()
    name = ids.cpu().to(torch.int64).numpy().copy()
    if np.isnan(value).any():
        raise ValueError(f"row {int(np.isnan(value).any(1).argmax())} has a score that is NaN")
    outside = (name < -1) | (name > labels)
    if outside.any():
        raise ValueError(f"row {int(outside.any(1).argmax())} has the id {name[outside][0]}; expected -1 to {labels}")
    name[(name < 0) | (value == -np.inf)] = labels
    if exclude is not None:
        name[_member(name, exclude)] = labels
    order = np.argsort(name, axis=1, kind="stable")
    name, value = np.take_along_axis(name, order, 1), np.take_along_axis(value, order, 1)
    twice = (name[:, 1:] == name[:, :-1]) & (name[:, 1:] < labels)
    if twice.any():
        raise ValueError(
            f"row {int(twice.any(1).argmax())} has the id {name[:, 1:][twice][0]} twice; expected each once"
        )
    # by falling score; stable, so that equal scores stay in the order of their ids
    order = np.argsort(np.where(name < labels, -value, np.inf), axis=1, kind="stable")[:, :k]
    out = np.full((rows, k), labels, np.int64)
    out[:, : order.shape[1]] = np.take_along_axis(name, order, 1)
    return out


def hits(ids: np.ndarray, truth: Csr) -> np.ndarray:
    """bool, as ids: which are in the row of `truth`."""
    return _member(ids, truth)


def _member(ids: np.ndarray, matrix: Csr) -> np.ndarray:
    """Which ids[rows, n] are in their rows; an id that is no column never is."""
    columns = matrix.shape[1] + 1
    held = np.repeat(np.arange(matrix.shape[0]), matrix.counts().numpy()) * columns + matrix.indices.numpy()
    asked = np.arange(len(ids))[:, None] * columns + ids
    if not len(held):
        return np.zeros(ids.shape, bool)
    place = np.minimum(np.searchsorted(held, asked), len(held) - 1)
    return held[place] == asked


def ideal(truth: Csr, weight: Tensor, k: int) -> np.ndarray:
    """float64[rows, k]: the weights of the positives of each row, the largest first, 0 where there are none left."""
    counts = truth.counts().numpy()
    row = np.repeat(np.arange(len(counts)), counts)
    mine = weight.numpy()[truth.indices.numpy()]
    order = np.lexsort((-mine, row))
    rank = np.arange(len(row)) - np.repeat(truth.offsets.numpy()[:-1], counts)
    out = np.zeros((len(counts), k))
    kept = rank < k
    out[row[kept], rank[kept]] = mine[order][kept]
    return out

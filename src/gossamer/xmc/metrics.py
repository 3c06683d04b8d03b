"""How good ranked labels are: P, nDCG, PSP, PSnDCG and R at k, as the extreme classification repository defines them.

For example i with positives Y_i, the label at rank j of its predictions is a hit (f_ij = 1) or not (0). w_l is the
inverse propensity of label l, g_ij = w f_ij, and g*_ij is g for the best order there is: positives by falling w. Means
are over all examples, those without positives included.

    P@k       mean (f_1 + ... + f_k) / k
    R@k       mean (f_1 + ... + f_k) / |Y|                                            (|Y| = 0 counts as 1)
    nDCG@k    mean (f_1 / log2(2) + ... + f_k / log2(k + 1)) / D     D = sum over j <= min(k, |Y|) of 1 / log2(j + 1)
    PSP@k     mean (g_1 + ... + g_k) / mean (g*_1 + ... + g*_k)                       a ratio of means
    PSnDCG@k  the ratio of means with g / log2(j + 1) / D and g* / log2(j + 1) / D

Propensity: Jain, Prabhu & Varma, "Extreme multi-label loss functions for recommendation, tagging, ranking and other
missing label applications", KDD 2016. Nothing of the size examples x labels is held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.ranking import best, hits, ideal

# (A, B) of the propensity model by family of data sets; the last one for all others.
PROPENSITY = {"wikipedia": (0.5, 0.4), "amazon": (0.6, 2.6), "other": (0.55, 1.5)}
NAMES = ("P", "nDCG", "PSP", "PSnDCG", "R")
_ROWS = (
    4096  # examples whose numbers are summed at a time, from the first one on: batches of any size give the same bits
)
DECILES = 10


def inverse_propensity(labels: Csr, *, a: float = 0.55, b: float = 1.5) -> Tensor:
    """float64[labels]: 1 + C (N_l + b)^-a, C = (ln N - 1) (b + 1)^a, for label frequencies N_l in N training examples.

    Args:
        labels: the label sets of the training part, as they are published (nothing added to them).
        a, b: of the model; `PROPENSITY` has them by family of data sets.

    Raises:
        ValueError: `a` or `b` is no positive number; fewer than 3 examples, for which ln N - 1 is below 0.

    >>> from gossamer.xmc.data import Csr
    >>> inverse_propensity(Csr.from_lists([[0], [0], [0, 1]], columns=3))
    tensor([1.0714, 1.0986, 1.1306], dtype=torch.float64)
    """
    for name, value in (("a", a), ("b", b)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a positive number")
    rows = labels.shape[0]
    if rows < 3:
        raise ValueError(f"labels have {rows} rows; expected at least 3 for ln N - 1 to be positive")
    c = (math.log(rows) - 1) * (b + 1) ** a
    return 1 + c * (labels.column_counts().double() + b) ** -a


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        at: name -> the values at 1, 2, ..., k: `scores.at["P"][4]` is P@5. PSP and PSnDCG are there if propensities
            were given.
        deciles: one record for each tenth of the labels, from the rarest to the most frequent, if frequencies were
            given. `P@k` and `PSP@k` are its part of the whole (the tenths add up to it), `R@k` is the share of its
            positives that were found.
        examples: rows measured.
        k: the largest rank.
    """

    at: dict[str, list[float]]
    deciles: list[dict[str, Any]]
    examples: int
    k: int

    def __getitem__(self, name: str) -> float:
        """One number, such as `scores["PSP@3"]`."""
        kind, _, rank = name.partition("@")
        if kind not in self.at or not rank.isdecimal() or not 1 <= int(rank) <= self.k:
            raise KeyError(f"there is no {name!r}; expected one of {', '.join(self.at)} at 1 to {self.k}")
        return self.at[kind][int(rank) - 1]

    def table(self, ranks: tuple[int, ...] = (1, 3, 5)) -> str:
        """One line a metric, in percent."""
        ranks = tuple(rank for rank in ranks if rank <= self.k)
        lines = ["".join([f"{'':8}", *(f"{'@' + str(rank):>8}" for rank in ranks)])]
        for name, values in self.at.items():
            lines.append("".join([f"{name:8}", *(f"{100 * values[rank - 1]:8.2f}" for rank in ranks)]))
        return "\n".join(lines)


class Metrics:
    """Sums over batches of predictions; `result` divides them.

    Args:
        labels: how many there are.
        k: the largest rank.
        propensity: float64[labels] of `inverse_propensity`, for PSP and PSnDCG.
        frequency: int64[labels], how often each label is in the training part, for the deciles.

    Example:
        >>> from gossamer.xmc.data import Csr
        >>> metrics = Metrics(labels=4, k=2)
        >>> truth = Csr.from_lists([[0, 3], [1]], columns=4)
        >>> metrics.add(torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.8]]), torch.tensor([[3, 1, 0], [0, 2, 1]]), truth)
        >>> metrics.result().at["P"]
        [1.0, 0.5]
    """

    def __init__(
        self, labels: int, k: int = 5, *, propensity: Tensor | None = None, frequency: Tensor | None = None
    ) -> None:
        if k < 1 or labels < 1:
            raise ValueError(f"labels is {labels} and k is {k}; expected numbers from 1")
        for name, given in (("propensity", propensity), ("frequency", frequency)):
            if given is not None and given.shape != (labels,):
                raise ValueError(
                    f"{name} has shape {list(given.shape)}; expected [{labels}], one number for each label"
                )
        if propensity is not None and not bool(((propensity > 0) & propensity.isfinite()).all()):
            raise ValueError("propensity holds a value that is not a positive finite number")
        self.labels, self.k, self.examples = labels, k, 0
        self._weight = None if propensity is None else propensity.double()
        self._decile = None if frequency is None else deciles(frequency)
        self._frequency = frequency
        self._waiting: list[np.ndarray] = []
        # columns: f, f / |Y|, f discounted / D, and g, g*, both again discounted / D: each at ranks 1 to k
        self._sums = np.zeros((7 if self._weight is not None else 3) * k)
        self._found = np.zeros((DECILES, 3))  # positives, hits, weight of the hits
        self._ranks = 1 / np.log2(np.arange(2, k + 2))

    def add(self, scores: Tensor, ids: Tensor, truth: Csr, exclude: Csr | None = None) -> None:
        """Count some examples.

        Args:
            scores: [rows, candidates], any float type; -inf for no prediction.
            ids: int64 or int32 [rows, candidates], none twice in a row, in any order. -1 and `labels` are no
                prediction. Fewer than k predictions miss at the ranks that are left.
            truth: Csr [rows, labels].
            exclude: Csr [rows, labels]: these are taken out of the candidates before the best k are chosen.

        Raises:
            ValueError: shapes or types that do not fit, an id out of range or twice in a row, a score that is NaN.
        """
        rows = truth.shape[0]
        if truth.shape[1] != self.labels or (exclude is not None and exclude.shape != truth.shape):
            other = "" if exclude is None else f", exclude {exclude.shape}"
            raise ValueError(f"truth has shape {truth.shape}{other}; expected ({rows}, {self.labels})")
        ranked = best(scores, ids, rows, self.labels, self.k, exclude)
        hit = hits(ranked, truth)
        positives = truth.counts().numpy()
        f = hit.astype(np.float64)
        discount = np.cumsum(self._ranks)[np.clip(positives, 1, self.k)[:, None] - 1]  # D, with |Y| = 0 as 1
        discount = np.minimum(discount, np.cumsum(self._ranks)[None, :])
        columns = [np.cumsum(f, 1), np.cumsum(f, 1) / np.maximum(positives, 1)[:, None],
                   np.cumsum(f * self._ranks, 1) / discount]  # fmt: skip
        g = f
        if self._weight is not None:
            g = np.where(hit, self._weight.numpy()[np.where(hit, ranked, 0)], 0.0)
            best_g = ideal(truth, self._weight, self.k)
            columns += [np.cumsum(g, 1), np.cumsum(best_g, 1)]
            columns += [np.cumsum(part * self._ranks, 1) / discount for part in (g, best_g)]
        if self._decile is not None:
            self._count(ranked[hit], g[hit], truth)
        self.examples += rows
        self._keep(np.concatenate(columns, axis=1))

    def _count(self, found: np.ndarray, weight: np.ndarray, truth: Csr) -> None:
        assert self._decile is not None
        self._found[:, 0] += np.bincount(self._decile[truth.indices.numpy()], minlength=DECILES)
        self._found[:, 1] += np.bincount(self._decile[found], minlength=DECILES)
        np.add.at(self._found[:, 2], self._decile[found], weight)  # one by one: batches of any size give the same bits

    def _keep(self, rows: np.ndarray) -> None:
        """Add rows up in blocks that do not depend on the batches."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _ROWS:
            every = np.concatenate(self._waiting)
            whole = len(every) - len(every) % _ROWS
            for start in range(0, whole, _ROWS):
                self._sums += every[start : start + _ROWS].sum(0)
            self._waiting = [every[whole:]]

    def result(self) -> Scores:
        """The metrics of all that was added so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self.examples:
            raise ValueError("no example was added; expected at least one")
        left = np.concatenate(self._waiting) if self._waiting else np.zeros((0, len(self._sums)))
        sums = (self._sums + left.sum(0)).reshape(-1, self.k)
        ranks = np.arange(1, self.k + 1)
        at = {"P": sums[0] / ranks / self.examples, "nDCG": sums[2] / self.examples, "R": sums[1] / self.examples}
        if self._weight is not None:
            with np.errstate(invalid="ignore"):
                at |= {"PSP": sums[3] / sums[4], "PSnDCG": sums[5] / sums[6]}
                if not sums[4].any():  # no example has a positive: nothing could be found
                    at |= {"PSP": np.zeros(self.k), "PSnDCG": np.zeros(self.k)}
        total = None if self._weight is None else float(sums[4][-1])
        ordered = {name: at[name].tolist() for name in NAMES if name in at}
        return Scores(ordered, self._deciles(total), self.examples, self.k)

    def _deciles(self, ideal_weight: float | None) -> list[dict[str, Any]]:
        if self._decile is None or self._frequency is None:
            return []
        out = []
        for number, (positives, found, weight) in enumerate(self._found.tolist()):
            mine = self._frequency.numpy()[self._decile == number]
            record: dict[str, Any] = {
                "labels": len(mine),
                "frequency": [int(mine.min()), int(mine.max())] if len(mine) else [],
                f"P@{self.k}": found / (self.k * self.examples),
                f"R@{self.k}": found / positives if positives else 0.0,
            }
            if ideal_weight is not None:
                record[f"PSP@{self.k}"] = weight / ideal_weight if ideal_weight else 0.0
            out.append(record)
        return out


def deciles(frequency: Tensor) -> np.ndarray:
    """uint8[labels]: in which tenth of the labels each is, 0 for the rarest; equal frequencies by id."""
    order = np.argsort(frequency.numpy(), kind="stable")
    out = np.empty(len(order), np.uint8)
    out[order] = np.arange(len(order)) * DECILES // max(len(order), 1)
    return out

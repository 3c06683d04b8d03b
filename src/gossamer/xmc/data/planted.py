"""Data whose best possible classifier is known: labels with power-law frequencies over planted prototypes.

    prior of label l        (l + 10)^-alpha                    few labels are frequent, most have a handful of examples
    cluster                 64 labels of all frequencies; each has a support of s inputs
    prototype p_l           (cluster part + own part), on the support of its cluster, of length 1
    an example              x = (sum of the prototypes of 1 + Poisson labels of a cluster) / its length + noise
    its labels              1 + Poisson draws by softmax(x . p_l / temperature + log prior), each kept once

Labels are drawn given x. So the classifier that scores a label with x . p_l / temperature + log prior ranks by the true
probabilities, and no other has a larger expected P@k. It is linear, with s inputs a label and a bias: a head of fan-in
k >= s can express it (realisable), one of k < s cannot (stress).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.dataset import DataSet, Part

CLUSTER = 64
OFFSET = 10.0
_ROWS = 64  # examples whose scores are held at a time, so that they stay in the cache


@dataclass(frozen=True)
class Planted:
    """The data set and the rule that made it.

    Attributes:
        data: features and label sets; every label has a training example.
        prototypes: float32 [labels, width], each of length 1, nonzero at `support` inputs.
        log_prior: float32 [labels].
        clean: float32 [test rows, width]: the test examples before `hidden`, for the oracle.
        temperature: of the probabilities.
    """

    data: DataSet
    prototypes: Tensor
    log_prior: Tensor
    clean: Tensor
    temperature: float

    def oracle(self, k: int = 5, *, block: int = 1024) -> tuple[Tensor, Tensor]:
        """What the best classifier predicts for the test part: (scores [rows, k], ids int64[rows, k]), best first.

        Its P@k is the ceiling that a classifier is measured against.
        """
        scores, ids = [], []
        k = min(k, len(self.prototypes))
        for start in range(0, len(self.clean), block):
            found = self.clean[start : start + block] @ self.prototypes.T / self.temperature + self.log_prior
            best = found.topk(k)
            scores.append(best.values)
            ids.append(best.indices)
        return torch.cat(scores), torch.cat(ids)


def planted(
    *,
    rows: int = 20_000,
    test_rows: int = 5_000,
    labels: int = 4_096,
    width: int = 256,
    support: int = 16,
    seed: int = 0,
    alpha: float = 0.9,
    extra_labels: float = 1.0,
    stray: float = 0.05,
    noise: float = 0.5,
    temperature: float = 0.05,
    hidden: int | None = None,
) -> Planted:
    """Draw a data set with a known ceiling.

    Args:
        rows, test_rows: examples.
        labels, width: of the classifier.
        support: inputs that a label depends on.
        alpha: exponent of the label frequencies, >= 0.
        extra_labels: mean of the Poisson numbers.
        stray: probability that a further prototype of an example is of any label instead of the cluster.
        noise: length of the noise of an example; the signal has length 1.
        temperature: the lower, the surer the labels are given an example, and the higher the ceiling.
        hidden: pass the examples through a fixed random network with a hidden layer of this width, so that an encoder
            has to be learned; None: the classifier alone can do it.

    Raises:
        ValueError: a number out of its range.

    >>> from gossamer import xmc
    >>> made = xmc.data.planted(rows=400, test_rows=50, labels=100, width=32, support=8, seed=1)
    >>> made.data.train.labels.column_counts().min().item(), made.oracle(k=3)[1].shape
    (1, torch.Size([50, 3]))
    """
    _check(locals())
    draw = np.random.default_rng(seed)
    clusters = -(-labels // CLUSTER)
    member = draw.permutation(labels) % clusters  # so that each cluster has labels of all frequencies
    prior = (np.arange(labels) + OFFSET) ** -alpha
    prior /= prior.sum()
    places, values = _prototypes(draw, member, clusters, width, support)
    prototypes = np.zeros((labels, width))
    np.put_along_axis(prototypes, places[member], values, axis=1)
    seeds = Csr.from_lists(_sets(draw, rows + test_rows, member, prior, extra_labels, stray), labels)
    sums = np.add.reduceat(prototypes[seeds.indices.numpy()], seeds.offsets[:-1].numpy(), axis=0)
    x = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    x = (x + noise / width**0.5 * draw.standard_normal(x.shape)).astype(np.float32)
    wanted = 1 + draw.poisson(extra_labels, len(x))
    score = _Scores(member, places, values / temperature, np.log(prior))
    targets = Csr.from_lists(_labels(draw, x, score, wanted, rows), labels)
    seen = x if hidden is None else _network(draw, x, hidden)
    ends = (0, rows), (rows, rows + test_rows)
    train, test = (Part(targets.slice(start, stop), _dense(seen[start:stop])) for start, stop in ends)
    facts = {
        "seed": seed, "support": support, "alpha": alpha, "noise": noise, "temperature": temperature,
        "hidden": hidden or 0,
    }  # fmt: skip
    return Planted(
        DataSet(train, test, None, "planted", facts), torch.from_numpy(prototypes.astype(np.float32)),
        torch.from_numpy(np.log(prior).astype(np.float32)), torch.from_numpy(x[rows:].copy()), temperature,
    )  # fmt: skip


def _check(given: dict[str, int | float | None]) -> None:
    for name in ("rows", "test_rows", "labels", "width", "support", "hidden"):
        value = given[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; expected a whole number from 1")
    for name, most in (("alpha", 10.0), ("extra_labels", 100.0), ("stray", 1.0), ("noise", 1e6), ("temperature", 1e6)):
        value = given[name]
        if value is None or not 0 <= value <= most or (name == "temperature" and not value):
            above = "above 0, up to" if name == "temperature" else "from 0 to"
            raise ValueError(f"{name} is {value!r}; expected a number {above} {most}")
    if given["support"] > given["width"]:  # type: ignore[operator]
        raise ValueError(f"support is {given['support']}; expected at most the width, {given['width']}")


def _prototypes(
    draw: np.random.Generator, member: np.ndarray, clusters: int, width: int, support: int
) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of each cluster, int [clusters, support], and the prototypes there, [labels, support]."""
    places = np.sort(np.argsort(draw.random((clusters, width)), axis=1)[:, :support], axis=1)
    values = draw.standard_normal((clusters, support))[member] + draw.standard_normal((len(member), support))
    return places, values / np.linalg.norm(values, axis=1, keepdims=True)


class _Scores:
    """The scores of all labels, cluster by cluster: each label has a few inputs only."""

    def __init__(self, member: np.ndarray, places: np.ndarray, values: np.ndarray, bias: np.ndarray) -> None:
        self.label = np.argsort(member, kind="stable")  # of each column of the scores: those of a cluster together
        ends = np.searchsorted(member[self.label], np.arange(len(places) + 1))
        self._parts = [
            (slice(a, b), place, values[self.label[a:b]].T)
            for (a, b), place in zip(pairwise(ends), places, strict=True)
        ]
        self._bias = bias[self.label]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float64 [rows, labels], so that no draw depends on the order in which a product was summed."""
        out = np.empty((len(x), len(self._bias)))
        for columns, place, values in self._parts:
            np.matmul(x[:, place].astype(np.float64), values, out=out[:, columns])
        out += self._bias
        return out


def _labels(draw: np.random.Generator, x: np.ndarray, score: _Scores, wanted: np.ndarray, rows: int) -> list[list[int]]:
    """Label sets, each row's by its probabilities; a label that no training row got goes to the one it suits best."""
    out: list[set[int]] = []
    best, suited = np.full(len(score.label), -np.inf), np.zeros(len(score.label), np.int64)
    for start in range(0, len(x), _ROWS):
        scores = score(x[start : start + _ROWS])
        mine = scores[: max(rows - start, 0)]
        if len(mine):
            high = mine.max(0)
            suited = np.where(high > best, start + mine.argmax(0), suited)
            best = np.maximum(best, high)
        scores -= scores.max(1, keepdims=True)
        np.cumsum(np.exp(scores, out=scores), axis=1, out=scores)
        for row, cumulated in enumerate(scores):
            drawn = np.searchsorted(cumulated, draw.random(wanted[start + row]) * cumulated[-1], side="right")
            out.append(set(score.label[np.minimum(drawn, len(cumulated) - 1)].tolist()))
    given = {label for labels in out[:rows] for label in labels}
    for label, row in zip(score.label.tolist(), suited.tolist(), strict=True):
        if label not in given:
            out[row].add(label)
    return [sorted(labels) for labels in out]


def _sets(
    draw: np.random.Generator, rows: int, member: np.ndarray, prior: np.ndarray, extra: float, stray: float
) -> list[list[int]]:
    """Labels whose prototypes make an example: the first by the prior, the others by the prior within its cluster."""
    counts = draw.poisson(extra, rows)
    first = _by_prior(draw, prior, rows)
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], np.arange(member.max() + 2))
    weight = np.concatenate(([0.0], np.cumsum(prior[order])))
    cluster = np.repeat(member[first], counts)
    low, high = weight[starts[cluster]], weight[starts[cluster + 1]]
    spot = np.searchsorted(weight, low + draw.random(len(cluster)) * (high - low), side="right") - 1
    spot = np.clip(spot, starts[cluster], starts[cluster + 1] - 1)  # what rounding put next door
    more = np.where(draw.random(len(cluster)) < stray, _by_prior(draw, prior, len(cluster)), order[spot])
    ends = np.concatenate(([0], np.cumsum(counts)))
    return [sorted({int(first[i]), *more[ends[i] : ends[i + 1]].tolist()}) for i in range(rows)]


def _by_prior(draw: np.random.Generator, prior: np.ndarray, count: int) -> np.ndarray:
    sums = np.cumsum(prior)
    return np.minimum(np.searchsorted(sums, draw.random(count) * sums[-1], side="right"), len(prior) - 1)


def _network(draw: np.random.Generator, x: np.ndarray, hidden: int) -> np.ndarray:
    first = draw.standard_normal((x.shape[1], hidden)) * (2 / x.shape[1]) ** 0.5 * x.shape[1] ** 0.5
    second = draw.standard_normal((hidden, x.shape[1])) * hidden**-0.5
    inner = x @ first.astype(np.float32)
    return np.maximum(inner, 0.1 * inner) @ second.astype(np.float32)


def _dense(x: np.ndarray) -> Csr:
    rows, width = x.shape
    indices = torch.arange(width, dtype=torch.int32, device="cpu").repeat(rows)
    values = torch.from_numpy(np.ascontiguousarray(x)).reshape(-1)
    return Csr(torch.arange(0, rows * width + 1, width, device="cpu"), indices, values.clone(), (rows, width))

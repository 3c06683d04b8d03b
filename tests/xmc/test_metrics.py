"""The metrics are the sums of their definition: brute force, scikit-learn, numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.xmc.data import Csr
from gossamer.xmc.metrics import NAMES, PROPENSITY, Metrics, deciles, inverse_propensity


def _brute(scores, ids, truth, exclude, weight, labels, k) -> dict[str, list[float]]:
    """Every definition of the module, one loop after the other."""
    sums = {name: [0.0] * k for name in (*NAMES, "PSP*", "PSnDCG*")}
    for row, positives in enumerate(truth):
        banned = exclude[row] if exclude else ()
        pairs = [(-s, i) for s, i in zip(scores[row], ids[row], strict=True)
                 if 0 <= i < labels and s > -math.inf and i not in banned]  # fmt: skip
        ranked = [i for _, i in sorted(pairs)][:k]
        best = sorted((weight[label] for label in positives), reverse=True)
        for at in range(1, k + 1):
            top = ranked[:at]
            d = sum(1 / math.log2(j + 1) for j in range(1, min(at, max(len(positives), 1)) + 1))
            discounted = [(weight[i] if i in positives else 0) / math.log2(j + 2) for j, i in enumerate(top)]
            sums["P"][at - 1] += sum(i in positives for i in top) / at
            sums["R"][at - 1] += sum(i in positives for i in top) / max(len(positives), 1)
            sums["nDCG"][at - 1] += sum((i in positives) / math.log2(j + 2) for j, i in enumerate(top)) / d
            sums["PSP"][at - 1] += sum(weight[i] for i in top if i in positives)
            sums["PSP*"][at - 1] += sum(best[:at])
            sums["PSnDCG"][at - 1] += sum(discounted) / d
            sums["PSnDCG*"][at - 1] += sum(w / math.log2(j + 2) for j, w in enumerate(best[:at])) / d
    out = {name: [value / len(truth) for value in sums[name]] for name in ("P", "nDCG", "R")}
    for name in ("PSP", "PSnDCG"):
        out[name] = [a / b if b else 0.0 for a, b in zip(sums[name], sums[name + "*"], strict=True)]
    return out


@st.composite
def _cases(draw):
    labels, k = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    some = st.sets(st.integers(0, labels - 1))
    rows = draw(st.integers(1, 6))
    width = draw(st.integers(0, labels))
    ids = [draw(st.permutations(range(labels)))[:width] for _ in range(rows)]
    score = st.sampled_from([0.0, 1.0, 1.5, -math.inf, math.inf])  # few, so that there are ties
    scores = [[draw(score) for _ in range(width)] for _ in range(rows)]
    ids = [[draw(st.sampled_from([-1, labels])) if draw(st.integers(0, 9)) == 0 else i for i in row] for row in ids]
    return labels, k, scores, ids, [draw(some) for _ in ids], draw(st.none() | st.just([draw(some) for _ in ids]))


@settings(max_examples=60)
@given(_cases())
def test_every_metric_is_its_definition(case) -> None:
    labels, k, scores, ids, truth, exclude = case
    weight = [1.0 + 0.37 * label for label in range(labels)]
    metrics = Metrics(labels, k, propensity=torch.tensor(weight, dtype=torch.float64))
    out = None if exclude is None else Csr.from_lists([sorted(row) for row in exclude], labels)
    shape = (len(truth), len(ids[0]))
    metrics.add(
        torch.tensor(scores).reshape(shape), torch.tensor(ids, dtype=torch.int64).reshape(shape),
        Csr.from_lists([sorted(row) for row in truth], labels), out,
    )  # fmt: skip
    found, expected = metrics.result().at, _brute(scores, ids, truth, exclude, weight, labels, k)
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], rel=1e-12, abs=1e-15), name


def test_ndcg_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    scores, truth = draw.random((200, 30)), draw.random((200, 30)) < 0.1
    truth[~truth.any(1), 0] = True
    metrics = Metrics(30, 5)
    y = Csr.from_lists([np.flatnonzero(row).tolist() for row in truth], 30)
    metrics.add(torch.from_numpy(scores), torch.arange(30).expand(200, 30), y)
    for k in range(1, 6):
        assert metrics.result()[f"nDCG@{k}"] == pytest.approx(sklearn.ndcg_score(truth, scores, k=k), rel=1e-12)


def test_psp_by_hand() -> None:
    """Two rows, weights 1, 2, 4. Row 0 has labels 0 and 2 and gets 0, 1; row 1 has label 1 and gets 1, 2.

    PSP@1 = (1 + 2) / (4 + 2); PSP@2 = (1 + 2) / (5 + 2): the ratio of the means, not the mean of the ratios.
    """
    metrics = Metrics(3, 2, propensity=torch.tensor([1.0, 2, 4]))
    metrics.add(torch.tensor([[9.0, 8], [9, 8]]), torch.tensor([[0, 1], [1, 2]]), Csr.from_lists([[0, 2], [1]], 3))
    assert metrics.result().at["PSP"] == [3 / 6, 3 / 7]
    assert metrics.result().at["P"] == [1.0, 0.5] and metrics.result().at["R"] == [0.75, 0.75]


@pytest.mark.parametrize(("a", "b"), PROPENSITY.values())
def test_propensities_are_the_formula(a: float, b: float) -> None:
    y = Csr.from_lists([[0, 1], [0], [0], [2, 0], []], columns=4)
    c = (math.log(5) - 1) * (b + 1) ** a
    expected = [1 + c * (n + b) ** -a for n in (4, 1, 1, 0)]
    assert inverse_propensity(y, a=a, b=b).tolist() == pytest.approx(expected, rel=1e-14)


def test_batches_of_any_size_give_the_same_bits() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, labels = 9000, 50
    scores, truth = torch.rand(rows, 12, generator=draw), torch.rand(rows, labels, generator=draw) < 0.1
    ids = torch.rand(rows, labels, generator=draw).argsort(1)[:, :12]
    y = Csr.from_lists([row.nonzero().flatten().tolist() for row in truth], labels)
    weight, results = inverse_propensity(y), []
    for size in (1000, 4096, 9000, 777):
        metrics = Metrics(labels, 5, propensity=weight, frequency=y.column_counts())
        for start in range(0, rows, size):
            metrics.add(scores[start : start + size], ids[start : start + size], y.slice(start, start + size))
        results.append(metrics.result())
    assert all(result == results[0] for result in results)
    parts = results[0].deciles
    assert [part["labels"] for part in parts] == [5] * 10
    for name in ("P@5", "PSP@5"):  # the tenths of the labels add up to all of them
        assert sum(part[name] for part in parts) == pytest.approx(results[0][name], rel=1e-12)
    found = [part["frequency"] for part in parts]
    assert all(low <= high for low, high in found) and all(a[1] <= b[0] for a, b in pairwise(found))


def test_deciles_go_from_rare_to_frequent_and_keep_the_order_of_equals() -> None:
    assert deciles(torch.tensor([5, 1, 1, 9, 2])).tolist() == [6, 0, 2, 8, 4]
    assert deciles(torch.zeros(20, dtype=torch.int64)).tolist() == [i // 2 for i in range(20)]


def test_ids_beyond_what_a_float32_holds() -> None:
    labels = 1 << 26
    ids = torch.tensor([[labels - 1, labels - 2, (1 << 24) + 1]])
    metrics = Metrics(labels, 3)
    metrics.add(torch.tensor([[3.0, 2, 1]]), ids, Csr.from_lists([[1 << 24, labels - 2]], labels))
    assert metrics.result().at["P"] == [0.0, 0.5, 1 / 3]


def test_nothing_to_be_found_is_zero() -> None:
    metrics = Metrics(3, 2, propensity=torch.ones(3), frequency=torch.ones(3, dtype=torch.int64))
    metrics.add(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), Csr.from_lists([[], []], 3))
    assert all(values == [0.0, 0.0] for values in metrics.result().at.values())
    assert "P           0.00" in metrics.result().table()


ONE, Y = torch.zeros(1, 1, dtype=torch.int64), Csr.from_lists([[0]], 3)


@pytest.mark.parametrize(
    ("scores", "ids", "truth", "exclude", "said"),
    [
        (torch.zeros(1, 2), ONE, Y, None, r"scores are torch.float32\[1, 2\] and ids torch.int64\[1, 1\]"),
        (torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64), Y, None, r"expected floats and integers \[1, cand"),
        (torch.zeros(1, 1), torch.zeros(1, 1), Y, None, "ids torch.float32"),
        (ONE, ONE, Y, None, "scores are torch.int64; expected floats"),
        (torch.full((1, 1), math.nan), ONE, Y, None, "row 0 has a score that is NaN"),
        (torch.zeros(1, 1), ONE + 4, Y, None, "row 0 has the id 4; expected -1 to 3"),
        (torch.zeros(1, 1), ONE - 2, Y, None, "row 0 has the id -2"),
        (torch.zeros(1, 2), ONE.expand(1, 2), Y, None, "row 0 has the id 0 twice"),
        (torch.zeros(1, 1), ONE, Csr.from_lists([[0]], 4), None, r"truth has shape \(1, 4\); expected \(1, 3\)"),
        (torch.zeros(1, 1), ONE, Y, Csr.from_lists([[0]], 4), r"exclude \(1, 4\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(scores, ids, truth, exclude, said) -> None:
    with pytest.raises(ValueError, match=said):
        Metrics(3).add(scores, ids, truth, exclude)


def test_bad_settings() -> None:
    for given_, said in (
        ({"labels": 0}, "expected numbers from 1"),
        ({"labels": 3, "k": 0}, "k is 0"),
        ({"labels": 3, "propensity": torch.ones(2)}, r"propensity has shape \[2\]; expected \[3\]"),
        ({"labels": 3, "propensity": torch.tensor([1.0, 0, 1])}, "not a positive finite number"),
    ):
        with pytest.raises(ValueError, match=said):
            Metrics(**given_)
    with pytest.raises(ValueError, match="no example was added"):
        Metrics(3).result()
    with pytest.raises(ValueError, match="expected at least 3"):
        inverse_propensity(Csr.from_lists([[0]], 1))
    metrics = Metrics(3)
    metrics.add(torch.zeros(1, 1), ONE, Y)
    with pytest.raises(KeyError, match="there is no 'PSP@1'; expected one of P, nDCG, R at 1 to 5"):
        metrics.result()["PSP@1"]

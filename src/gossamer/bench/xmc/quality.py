"""How good classifiers are: P@k, PSP@k and what is found of rare labels, ours beside other heads and other programs.

All heads are trained by the same recipe from the same examples and measured once, on the test part, after the last
epoch; nothing is chosen by it. Other programs get the same tf-idf features. A section per kind of data is made of this.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from gossamer.bench.cells import Cell, Column, value
from gossamer.bench.section import Row, Settings, Table
from gossamer.bench.xmc import rivals
from gossamer.bench.xmc.dense_head import AdamHead
from gossamer.xmc.classifier import Classifier
from gossamer.xmc.data import DataSet
from gossamer.xmc.encoders import make
from gossamer.xmc.fit import Fit, train
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.head import FusedHead
from gossamer.xmc.metrics import Metrics, Scores, inverse_propensity
from gossamer.xmc.predict import evaluate

K = 5
MOVED = {"rewire_every": 50, "rewire_fraction": 0.25}
SHOWN = 96  # inputs that a label looks at when its connections grow by the gradient
EARLY = 0.05  # share of the steps in which gradients of the encoder are early


@dataclass(frozen=True)
class Model:
    """A classifier to train: settings of its encoder and recipe; `dense` has a dense head in place of ours."""

    name: str
    encoder: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    dense: bool = False


def compared(fan_in: int, width: int, common: dict[str, Any], *, clusters: int = 0, **encoder: Any) -> list[Model]:
    """Ours, and what it is measured against.

    Args:
        width: of the embedding; 0: heads read the features alone, and the dense ones all of them.
        common: settings of the recipe. encoder: settings of all encoders.
        clusters: of the auxiliary objective; 0: it is not run.
    """
    recipe = {"fan_in": fan_in, **common}
    ours = {"width": width, **encoder}
    dense = {**ours, "words": 0} if width else ours
    models = [
        Model(f"fan-in {fan_in}", ours, recipe),
        Model("dense", dense, recipe, dense=True),
        Model(f"dense, bottleneck {2 * fan_in}", {**ours, "width": 2 * fan_in, "words": 0}, recipe, dense=True),
        Model(f"fan-in {fan_in}, random", ours, {**recipe, "chosen": 0.0}),
        Model(f"fan-in {fan_in}, random, moved", ours, {**recipe, "chosen": 0.0, **MOVED}),
        Model(f"fan-in {fan_in}, random, grown", ours, {**recipe, "chosen": 0.0, **MOVED, "rewire_candidates": SHOWN}),
    ]
    if width:
        models.append(Model(f"fan-in {fan_in}, random, no words", dense, recipe))
    if clusters:
        models.append(Model(f"fan-in {fan_in}, auxiliary", ours, {**recipe, "clusters": clusters}))
    return models


def rows(
    name: str, data: Callable[[int], DataSet], models: list[Model], settings: Settings, *, programs: bool = False
) -> Iterator[Row]:
    """A row for each model, over all seeds; and for each other program, which is run once.

    Args:
        data: seed -> data set: real ones are the same for all seeds.
    """
    sets = data(settings.seeds[0])
    facts = {"data": name, "labels": sets.labels, "examples": sets.train.labels.shape[0]}
    for model in models:
        runs = [trained(model, data(seed), seed) for seed in settings.seeds]
        yield {**facts, "model": model.name, **_together(runs)}
    for program in rivals.PROGRAMS if programs else ():
        yield {**facts, "model": program, **_rival(program, sets)}


def _given(sets: DataSet) -> tuple[Any, Any]:
    if sets.train.texts is not None:
        return sets.train.texts, sets.test.texts
    return sets.train.features, sets.test.features


def trained(model: Model, sets: DataSet, seed: int) -> dict[str, Any]:
    given, unseen = _given(sets)
    classifier = Classifier(encoder_settings=model.encoder, seed=seed, **model.recipe)
    begin = _cpu()
    fit, examples = classifier.begin(given, sets.train.labels)
    if model.dense:
        bias = cast(FusedHead, fit.head).bias
        assert bias is not None
        fit.head = cast(Head, AdamHead(fit.head.width, sets.labels, bias, seed))
    gradients: list[float] = []
    batch = min(fit.recipe.batch_size, len(examples))
    early = max(1.0, EARLY * (len(examples) // batch) * fit.recipe.epochs)

    def on_step(fit: Fit) -> None:
        found = next(fit.encoder.parameters()).grad
        if found is not None and fit.step <= early:
            gradients.append(float((found.coalesce().values() if found.is_sparse else found).norm()))

    train(fit, examples, on_step=on_step)
    seconds = _cpu() - begin
    scores = evaluate(
        fit.encoder, fit.head, fit.encoder.prepare(unseen), sets.test.labels, k=K,
        propensity=inverse_propensity(sets.train.labels), frequency=sets.train.labels.column_counts(),
    )  # fmt: skip
    size = sum(t.numel() * t.itemsize for t in _of_model(fit.head))
    return {**_facts(scores), "head_bytes": size, "cpu_seconds": seconds, "gradient": _mean(gradients)}


def _cpu() -> float:
    """CPU seconds of this process."""
    spent = os.times()
    return spent.user + spent.system


def _of_model(head: Any) -> list[Tensor]:
    """What is needed to predict: no states of an optimizer."""
    if isinstance(head, AdamHead):
        return head.buffers()
    return [t for t in (head.values, head.indices, head.bias) if t is not None]


def _facts(scores: Scores) -> dict[str, Any]:
    at = {f"{kind}@{k}": 100 * scores[f"{kind}@{k}"] for kind in ("P", "PSP") for k in (1, 3, 5)}
    deciles = {name: [100 * each[f"{name}@{K}"] for each in scores.deciles] for name in ("PSP", "R")}
    return {"scores": at, "deciles": deciles}


def _mean(numbers: list[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of every seed, and the deciles' means."""
    return {
        "runs": len(runs),
        "scores": {name: [run["scores"][name] for run in runs] for name in runs[0]["scores"]},
        "deciles": {
            name: [statistics.fmean(each) for each in zip(*(run["deciles"][name] for run in runs), strict=True)]
            for name in runs[0]["deciles"]
        },
        "head_bytes": runs[0]["head_bytes"],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
        "gradient": [run["gradient"] for run in runs],
    }


def _rival(program: str, sets: DataSet) -> dict[str, Any]:
    given, unseen = _given(sets)
    words = make("bow", width=1) if sets.train.features is None else None
    if words is not None:
        words.learn(given)
        given, unseen = words.prepare(given), words.prepare(unseen)
    found = rivals.run(program, given, sets.train.labels, unseen)
    if isinstance(found, str):
        return {"runs": 0, "absent": found}
    labels = sets.train.labels
    metrics = Metrics(sets.labels, K, propensity=inverse_propensity(labels), frequency=labels.column_counts())
    metrics.add(torch.arange(K, 0, -1.0).expand(len(found.ids), K), found.ids, sets.test.labels)
    of_one = {**_facts(metrics.result()), "head_bytes": found.bytes, "cpu_seconds": found.seconds, "gradient": None}
    return {**_together([of_one]), "peak_bytes": found.peak}


# ------------------------------------------------------------------------------------------------------------ tables


def _score(name: str) -> Cell:
    def cell(row: Row) -> str:
        if not row["runs"]:
            return "not run"
        seen = row["scores"][name]
        return f"{statistics.fmean(seen):.1f}" + (f" ± {statistics.stdev(seen):.1f}" if len(seen) > 1 else "")

    return cell


def _tenths(row: Row) -> str:
    """Of the positives of each tenth of the labels, rarest first, the share that is found."""
    return " ".join(f"{share:.0f}" for share in row["deciles"]["R"]) if row["runs"] else row["absent"]


def _megabytes(row: Row) -> str:
    return f"{row['head_bytes'] / 1e6:.1f}" if row["runs"] else ""


def _gradient(row: Row) -> str:
    seen = [each for each in row.get("gradient", ()) if each is not None]
    return f"{statistics.fmean(seen):.3g}" if seen else ""


COLUMNS: tuple[Column, ...] = (
    ("", value("model")), *((name, _score(name)) for name in ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5")),
    ("head MB", _megabytes), ("R@5 by tenths of the labels, rarest first", _tenths), ("early gradient", _gradient),
)  # fmt: skip

TABLE = Table(
    COLUMNS,
    "Means over seeds with their standard deviations; other programs ran once. Head MB are those of prediction, of "
    "other programs the saved model. Early gradient: the mean norm of the embedding's gradient in the first 5% "
    "of the steps.",
)

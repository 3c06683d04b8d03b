"""`gossamer xmc evaluate`, `predict` and `subset`: what is done with a trained classifier."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from gossamer import files
from gossamer.cli.flags import text_of
from gossamer.cli.xmc.train import test
from gossamer.xmc import data
from gossamer.xmc.classifier import OURS, Classifier, load

_LIMIT = 1 << 30


@dataclass(frozen=True)
class Evaluate:
    """Measure a classifier on the test part of a data set: P, nDCG, PSP, PSnDCG and R."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or of a classifier."""
    data: Annotated[Path, tyro.conf.Positional]
    """Folder of a data set."""
    json: Path | None = None
    """Write the numbers here too."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Predict:
    """The best labels of texts."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or of a classifier."""
    text: str | None = None
    """One text."""
    file: Path | None = None
    """A file with a text a line."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5
    """How many labels."""
    names: Path | None = None
    """A file with the name of a label a line; by default those that the classifier was saved with, or numbers."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Subset:
    """A smaller classifier that knows some labels only; everything about the others is gone."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or of a classifier."""
    labels: Path
    """A file with a label a line: its number, or its name."""
    out: Path
    """Folder of the smaller classifier; not that of the one it is taken from."""
    overwrite: bool = False
    """Replace a classifier that is in --out already."""
    debug: bool = False
    """Show the traceback of an error."""


def opened(run: Path, *, verify: bool | None = None) -> Classifier:
    """The classifier of a run's folder, or of a classifier's own; `verify` as for `load`."""
    if not run.is_dir():
        what = f"{run} is {files.kind(run)}" if run.exists() else f"there is no folder {run}"
        raise FileNotFoundError(f"{what}; expected that of a run, or of a classifier")
    return load(run / "classifier" if (run / "classifier").is_dir() else run, verify=verify)


def evaluate(config: Evaluate) -> None:
    """Print the table."""
    if config.json is not None:
        files.check_target(config.json)  # no minutes of work are to end in an error that could be seen before
    # Numbers that are reported are worth the time of reading all of the head once, which the test does anyway.
    classifier, sets = opened(config.run, verify=True), data.load(config.data)
    if classifier.head.labels != sets.labels:
        raise ValueError(
            f"the classifier knows {classifier.head.labels} labels, the data set has {sets.labels}; expected the same"
        )
    kind = classifier.encoder.kind
    given = kind == "bow" and classifier.encoder.settings()["given"]
    scores = test(classifier, sets, kind, "features" if given else "texts")
    print(scores.table())
    if config.json is not None:
        files.write_json(config.json, {"scores": scores.at, "deciles": scores.deciles, "examples": scores.examples})
        print(f"\nwritten: {config.json}")


def predict(config: Predict) -> None:
    """Print a line for each text: its labels and their scores."""
    if (config.text is None) == (config.file is None):
        raise ValueError("--text and --file were both given or neither; expected one of them")
    if config.k < 1:
        raise ValueError(f"-k is {config.k}; expected at least 1")
    texts = [config.text] if config.file is None else lines(config.file, "--file")
    classifier = opened(config.run)
    names = classifier.names if config.names is None else lines(config.names, "--names")
    if names is not None and len(names) != classifier.head.labels:
        raise ValueError(f"--names has {len(names)} lines, the classifier {classifier.head.labels} labels")
    scores, ids = classifier.predict_topk([text for text in texts if text is not None], k=config.k)
    for row_scores, row_ids in zip(scores.tolist(), ids.tolist(), strict=True):
        found: list[dict[str, Any]] = [
            {"label": at if names is None else names[at], "score": round(score, 4)}
            for score, at in zip(row_scores, row_ids, strict=True)
            if at >= 0
        ]
        print(json.dumps(found, ensure_ascii=False))


def subset(config: Subset) -> None:
    """Write the smaller classifier."""
    check_apart(config)
    classifier = opened(config.run, verify=True)  # what is written gets checksums of its own: damage would look whole
    wanted = [numbered(line, at, classifier, config.labels) for at, line in enumerate(lines(config.labels, "--labels"))]
    if not wanted:
        raise ValueError(f"--labels {config.labels} is empty; expected a label a line")
    small = classifier.subset(torch.tensor(wanted, device="cpu"))
    print(f"{len(wanted):,} of {classifier.head.labels:,} labels written: {small.save(config.out)}")


def check_apart(config: Subset) -> None:
    """Raise unless --out can be written, is apart from what is read, and holds nothing, or what --overwrite gives up.

    Raises:
        FileExistsError: it holds a classifier, or files of others.
        NotADirectoryError, ValueError, OSError: it is no folder, overlaps the source, or cannot be written.
    """
    source, out = Path(os.path.realpath(config.run)), Path(os.path.realpath(config.out))
    if out == source or source in out.parents or out in source.parents:
        where = "is" if out == source else "lies in" if source in out.parents else "holds"
        raise ValueError(f"--out {config.out} {where} {config.run}, which is read; name a folder apart from it")
    found = OURS.find(config.out, "--out ")
    if found is not None and found.get("empty") is not True and not config.overwrite:
        raise FileExistsError(
            f"--out {config.out} holds a classifier already; --overwrite replaces it, or name another place"
        )
    files.check_target(config.out / OURS.file)


def numbered(line: str, at: int, classifier: Classifier, path: Path) -> int:
    """The number of a label that a line names."""
    if classifier.names is not None and line in classifier.number_of:
        return classifier.number_of[line]
    if line.isdecimal() and int(line) < classifier.head.labels:
        return int(line)
    raise ValueError(
        f"{path}:{at + 1} names the label {line!r}; expected a name that the classifier knows, or a number from 0 to "
        f"{classifier.head.labels - 1}"
    )


def lines(path: Path, flag: str) -> list[str]:
    """The lines of a text file, in UTF-8."""
    return text_of(flag, path, limit=_LIMIT).splitlines()

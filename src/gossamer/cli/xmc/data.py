"""`gossamer xmc data SOURCE --out DIR`: a data set from what this machine has, in the standard layout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer import extras, files
from gossamer.cli.flags import parse
from gossamer.cli.mistakes import unknown
from gossamer.xmc.data import DataSet, debtags, planted, save, stdlib
from gossamer.xmc.data.folder import check
from gossamer.xmc.metrics import Metrics

HELP = """usage: gossamer xmc data SOURCE --out DIR [flags]

  stdlib    functions of Python's own library: signature and docstring -> the names that the body uses
  debtags   packages of Debian: description -> tags, from the lists that apt has fetched
  planted   drawn labels with power-law frequencies, whose best possible P@k is known

gossamer xmc data SOURCE --help lists the flags of a source.
"""


@dataclass(frozen=True)
class Out:
    """Where the data set goes."""

    out: Path
    """A new or empty folder, or a data set of this program with --overwrite."""
    overwrite: bool = False
    """Delete the data set that is there."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Stdlib(Out):
    """Functions of Python's own library: signature and docstring -> the names that the body uses."""

    folder: Path | None = None
    """Another folder of Python modules."""
    documented: bool = False
    """Only functions with a docstring."""
    min_count: int = 1
    """Leave out labels that fewer training examples have."""
    test_fraction: float = 0.2
    """Share of the modules whose functions are the test part."""


@dataclass(frozen=True)
class Debtags(Out):
    """Packages of Debian: description -> tags, from the lists that apt has fetched."""

    source: Path | None = None
    """A folder of package lists, or one list; apt's own folder when not given."""
    min_count: int = 1
    """Leave out tags that fewer training examples have."""
    test_fraction: float = 0.2
    """Share of the source packages in the test part."""


@dataclass(frozen=True)
class PlantedFlags(Out):
    """Drawn labels with power-law frequencies, whose best possible P@k is known."""

    rows: int = 20_000
    """Training examples."""
    test_rows: int = 5_000
    """Test examples."""
    labels: int = 4_096
    """Labels."""
    width: int = 256
    """Features."""
    support: int = 16
    """Features that a label depends on; a fan-in below this cannot express the labels."""
    alpha: float = 0.9
    """Exponent of the label frequencies."""
    noise: float = 0.5
    """Length of the noise of an example; the signal has length 1."""
    temperature: float = 0.05
    """The lower, the surer the labels are given an example, and the higher the ceiling."""
    hidden: int | None = None
    """Pass the features through a fixed random network of this width, so that an encoder has to be learned."""
    seed: int = 0
    """Of everything drawn."""


def run(argv: Sequence[str]) -> None:
    """Make the data set, save it and say what is in it."""
    source, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if source in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if source not in _SOURCES:
        raise ValueError(unknown("source", source, _SOURCES))
    kind, make = _SOURCES[source]
    config: Any = parse(kind, f"gossamer xmc data {source}", rest)
    try:
        check(config.out, overwrite=config.overwrite)  # minutes of reading are not to end in an error seen before
        files.check_target(config.out / "data.json")
    except FileExistsError as error:
        raise FileExistsError(f"--out {str(error).replace('; overwrite', '; --overwrite')}") from None
    data, lines = make(config)
    save(data, config.out, overwrite=config.overwrite)
    print(summary(data))
    for line in lines:
        print(line)
    print(f"written: {config.out}")


def _stdlib(config: Stdlib) -> tuple[DataSet, list[str]]:
    with _bar("modules") as progress:
        data = stdlib(
            config.folder, documented=config.documented, min_count=config.min_count,
            test_fraction=config.test_fraction, progress=progress,
        )  # fmt: skip
    return data, []


def _debtags(config: Debtags) -> tuple[DataSet, list[str]]:
    with _bar("lists") as progress:
        data = debtags(config.source, min_count=config.min_count, test_fraction=config.test_fraction, progress=progress)
    return data, []


def _planted(config: PlantedFlags) -> tuple[DataSet, list[str]]:
    made = planted(
        rows=config.rows, test_rows=config.test_rows, labels=config.labels, width=config.width,
        support=config.support, alpha=config.alpha, noise=config.noise, temperature=config.temperature,
        hidden=config.hidden, seed=config.seed,
    )  # fmt: skip
    metrics = Metrics(made.data.labels, k=min(5, made.data.labels))
    metrics.add(*made.oracle(metrics.k), made.data.test.labels)
    return made.data, ["the best possible, in percent:", metrics.result().table()]


_SOURCES: dict[str, tuple[type, Callable[..., tuple[DataSet, list[str]]]]] = {
    "stdlib": (Stdlib, _stdlib),
    "debtags": (Debtags, _debtags),
    "planted": (PlantedFlags, _planted),
}


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with extras.needed("tqdm", "the progress bar needs tqdm", "xmc").tqdm(total=1, unit=unit) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield progress


def summary(data: DataSet) -> str:
    """What is in a data set: one line a part, and one on the label frequencies."""
    lines = [f"{data.name}: {data.labels} labels" + "".join(f", {key} {value}" for key, value in data.facts.items())]
    for name, part in (("train", data.train), ("test", data.test)):
        rows = part.labels.shape[0]
        width = "" if part.features is None else f", {part.features.shape[1]} features"
        lines.append(f"  {name:6} {rows} examples, {part.labels.nnz / max(rows, 1):.2f} labels each{width}")
    counts = data.train.labels.column_counts()
    rare = float((counts <= 3).double().mean())
    lines.append(
        f"  training examples of a label: median {int(counts.median())}, mean {float(counts.double().mean()):.1f}, "
        f"most {int(counts.max())}; {rare:.0%} of the labels have at most 3"
    )
    return "\n".join(lines)

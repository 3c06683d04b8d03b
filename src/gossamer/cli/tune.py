"""`gossamer tune`: measure this machine's cost curves once, for every later decision of the planner."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gossamer import files
from gossamer.cli.flags import use_threads
from gossamer.planner.costs import cache as costs_file
from gossamer.planner.costs.cache import Database, Key
from gossamer.tuning.tune import tune


@dataclass(frozen=True)
class Tune:
    """Time dense and sparse products on this machine and keep their cost curves for the planner."""

    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""
    quick: bool = False
    """One shape and fewer densities."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given. The curves hold for this number only."""
    cache: Path | None = None
    """Folder of the file; $GOSSAMER_CACHE or ~/.cache/gossamer when not given."""


def run(config: Tune) -> None:
    """Measure, save and print the curves."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: torch sees no CUDA device here")
    use_threads(config.threads)
    folder = config.cache
    # Minutes of measuring are not to end in an error that could be seen before.
    path = costs_file.file_for(costs_file.machine_of(config.device), folder)
    try:
        files.check_target(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; --cache or GOSSAMER_CACHE names another folder") from error
    from tqdm import tqdm

    with tqdm(total=1, disable=not sys.stderr.isatty(), unit="step") as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(what)
            bar.refresh()

        measured = tune(config.device, quick=config.quick, progress=progress)
    before = costs_file.load(costs_file.file_for(measured.machine, folder), costs_file.text_of(measured.machine))
    path = before.merge(measured).save(folder)
    print(table(measured))
    print(f"\nwritten: {path}")


def table(database: Database) -> str:
    """Speed of every product over dense, and the density at which it breaks even, searching included."""
    lines = ["  ".join(f"{name} {value}" for name, value in database.machine.items() if value is not None)]
    for shape, dtype, device in dict.fromkeys(
        (key.shape, key.dtype, key.device) for key in database.curves if key.op == "matmul"
    ):
        lines += _shape_table(database, shape, dtype, device)
    return "\n".join(lines)


def _shape_table(database: Database, shape: tuple[int, ...], dtype: str, device: str) -> list[str]:
    rows, k, n = shape
    dense = database.curves[Key("matmul", "dense", shape, dtype, device)](1.0)
    title = f"{rows} x {k} @ {k} x {n}, {dtype}: dense {dense * 1e3:.3f} ms"
    lines = ["", f"{title}; speed-up with the search, at occupied fraction"]
    columns = (0.0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
    lines.append(f"  {'tile':>12}" + "".join(f"{column:>8.2f}" for column in columns) + "  break-even")
    for key, product in database.curves.items():
        if key.op != "matmul" or key.alternative == "dense" or (key.shape, key.dtype) != (shape, dtype):
            continue
        detect = database.curves[replace(key, op="detect")]
        speed = "".join(f"{dense / (product(x) + detect(x)):>8.2f}" for x in columns)
        even = product.reaches(max(dense - detect(1.0), 0.0))
        name = key.alternative.replace("(0,", "(m,").replace(" 0)", " k)")
        lines.append(f"  {name:>12}{speed}{even:>12.2f}")
    return lines

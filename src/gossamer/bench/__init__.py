"""Benchmark suites: every number in the docs is a row one of these wrote.

A suite is a function `(Settings) -> {section: [row, ...]}`; `run` adds the machine and the settings and writes JSON.
May import everything below the command line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gossamer import files
from gossamer.measure import environment

SUITES = {
    "compact": "train sparse, shrink, run: accuracy, throughput, step overhead, training that shrinks as it goes",
    "conv": "convolutions, linears and networks that skip run-time zeros; training that has them",
    "detect": "finding the nonzero tiles of a dense tensor, against reading it once",
    "matmul": "block-sparse products, products with run-time zeros, experts, sparse training steps",
}


@dataclass(frozen=True)
class Settings:
    """What a suite may vary. `reps` rounds of interleaved runs; `only` limits the run to these sections."""

    device: str = "cpu"
    threads: int | None = None
    reps: int = 15
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    only: tuple[str, ...] = ()
    quick: bool = False
    full: bool = False

    def wants(self, section: str) -> bool:
        return not self.only or section in self.only


def run(suite: str, settings: Settings, json_path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Run one suite and return (and write) its result.

    With `only`, the sections that were not run keep the rows that an existing `json_path` holds, together with the
    environment they were measured in.

    Raises:
        ValueError: an unknown suite, section or device, or settings or a file that cannot be used; before measuring.
        OSError: `json_path` cannot be written; likewise.
    """
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}; expected one of {list(SUITES)}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch.cuda.is_available() is False on this machine")
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(f"device is {settings.device!r}; expected 'cpu' or 'cuda'")
    module = importlib.import_module(f"gossamer.bench.{suite}")
    sections: dict[str, Callable[[Settings], list[dict[str, Any]]]] = module.SECTIONS
    unknown = [name for name in settings.only if name not in sections]
    if unknown:
        raise ValueError(f"only names {unknown}; suite {suite!r} has the sections {list(sections)}")
    if settings.device == "cuda":
        on_gpu = getattr(module, "ON_GPU", tuple(sections))
        unfit = [name for name in settings.only if name not in on_gpu]
        if unfit:
            raise ValueError(f"only names {unfit}, which measure a CPU; on device 'cuda' {suite!r} has {list(on_gpu)}")
        sections = {name: section for name, section in sections.items() if name in on_gpu}

    for what, number in (("reps", settings.reps), ("threads", settings.threads)):
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    path = Path(json_path) if json_path is not None else None
    result: dict[str, Any] = {"suite": suite, "sections": {}}
    if path is not None:
        if path.exists() and settings.only:
            result = _read(path, suite)
        files.check_target(path)  # minutes of measuring are not to end in an error that could be seen before
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        for name, section in sections.items():
            if settings.wants(name):
                where = environment()
                rows = section(settings)
                result["sections"][name] = {"environment": where, "settings": asdict(settings), "rows": rows}
                if path is not None:  # after each section: an interrupted run keeps what it measured
                    files.write_json(path, result)
    finally:
        torch.set_num_threads(before)
    return result


def _read(path: Path, suite: str) -> dict[str, Any]:
    """An earlier result, whose sections are kept."""
    try:
        result = files.parse_json(files.read(path, limit=1 << 26))
        of, sections = result["suite"], result["sections"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"json_path {path} holds no earlier result, whose sections could be kept: {error!r}") from None
    if of != suite or not isinstance(sections, dict):
        raise ValueError(f"json_path {path} holds a result of suite {of!r}; expected {suite!r}")
    return dict(result)

"""Benchmark suites: every number in the docs is a row one of these wrote.

A suite is a package whose modules are its sections (`gossamer.bench.section`); `run` adds the machine and the settings
to the rows of each and writes JSON. May import everything below the command line.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from gossamer import files
from gossamer.bench import dense, results
from gossamer.bench.cells import Rows
from gossamer.bench.section import Section, Settings, Summary, sections, summaries
from gossamer.measure import environment

__all__ = ["SUITES", "Section", "Settings", "Summary", "run", "sections", "summaries"]

SUITES = {
    "attention": "attention over long contexts: one layer, whole models, batches; what choosing pages costs",
    "compact": "train sparse, shrink, run: accuracy, throughput, step overhead, training that shrinks as it goes",
    "compile": "torch.compile's backend beside eager and inductor: zeros, padding, experts, masks, and nothing of it",
    "conv": "convolutions, linears and networks that skip run-time zeros; training that has them",
    "detect": "finding the nonzero tiles of a dense tensor, against reading it once",
    "matmul": "block-sparse products, products with run-time zeros, experts, sparse training steps",
    "route": "tokens that skip layers: time beside FLOPs, what choosing costs, what it does to a model",
    "serve": "clients of a server over HTTP: how long they wait and what all get, dense, sparse, beside another server",
    "xmc": "classifiers over many labels: steps and memory of the head, beside dense ones",
}


def run(suite: str, settings: Settings, json_path: str | os.PathLike[str] | None = None) -> results.Result:
    """Run one suite and return (and write) its result.

    The file is written after every row, so a run that is stopped keeps what it measured; the section that it was in
    is marked "unfinished". With `only`, the sections that were not run keep the rows that an existing `json_path`
    holds, together with the environment they were measured in.

    Raises:
        ValueError: an unknown suite, section or device, or settings or a file that cannot be used; before measuring.
        OSError: `json_path` cannot be written; likewise.
    """
    chosen = _chosen(suite, settings)
    path = Path(json_path) if json_path is not None else None
    result: results.Result = {"suite": suite, "sections": {}}
    if path is not None:
        if path.exists() and settings.only:
            result = results.read(path, suite)
        files.check_target(path)  # minutes of measuring are not to end in an error that could be seen before
    before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        peak = dense.peak(settings)
        for name, section in chosen.items():
            about = {"environment": {**environment(), "peak": peak}, "settings": asdict(settings)}
            rows: Rows = []
            for row in section.rows(settings):
                rows.append(row)
                result["sections"][name] = {**about, "unfinished": True, "rows": rows}
                _keep(path, result)
            result["sections"][name] = {**about, "rows": rows}
            _keep(path, result)
    finally:
        torch.set_num_threads(before)
    return result


def _keep(path: Path | None, result: results.Result) -> None:
    if path is not None:
        results.write(path, result)


def _chosen(suite: str, settings: Settings) -> dict[str, Section]:
    """The sections to run; what the settings may not say is an error."""
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}; expected one of {list(SUITES)}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch.cuda.is_available() is False on this machine")
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(f"device is {settings.device!r}; expected 'cpu' or 'cuda'")
    found = sections(suite)
    unknown = [name for name in settings.only if name not in found]
    if unknown:
        raise ValueError(f"only names {unknown}; suite {suite!r} has the sections {list(found)}")
    if settings.device == "cuda":
        found = {name: section for name, section in found.items() if section.on_gpu}
        unfit = [name for name in settings.only if name not in found]
        if unfit:
            raise ValueError(f"only names {unfit}, which measure a CPU; on device 'cuda' {suite!r} has {list(found)}")
    for what, number in (("reps", settings.reps), ("threads", settings.threads)):
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    return {name: section for name, section in found.items() if settings.wants(name)}

"""Write a report to a folder, each file whole or not at all."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from gossamer import files
from gossamer.report.page import page


def _plain(value: Any, place: str) -> Any:
    """`value` as JSON can hold it; numbers that are not finite become null."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place} is {value!r}; expected text that can be written as UTF-8") from None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{place} is a {type(value).__name__}; expected numbers, strings, lists and dicts")


def write(folder: str | os.PathLike[str], report: dict[str, Any]) -> Path:
    """Write `report.json` and `report.html`.

    Args:
        folder: where to; made if it is not there.
        report: plain data. `title` and `table` are required; a table is {name: {any of accuracy, parameters, nonzeros,
            bytes, flops, latency in seconds, throughput in examples a second}}, the names being dense, sparse and
            compact. Drawn when present: `summary`, `facts` [{value, label}], `curves` {name: [{step, accuracy,
            density, channels}]}, `chance` (the accuracy of guessing, a line among the curves), `channels` (see
            `gossamer.report.channels`), `latency` and `throughput` (`Comparison.to_dict()` and the `batch`),
            `compaction` (text), `notes` [str], `config`, `environment`, `command`. Further keys
            go to the JSON only.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: `title` or `table` is missing.
        TypeError: a value is not plain data; nothing is written then.

    >>> import tempfile, gossamer as gs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gs.report.write(folder, {"title": "A run", "table": {"dense": {"accuracy": 0.99}}}).name
    'report.html'
    """
    plain = _plain(dict(report), "report")
    for key in ("title", "table"):
        if not plain.get(key):
            raise ValueError(f"report has no {key!r}; expected at least a title and a table")
    document = page(plain)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "report.json", plain)
    with files.replacing(out / "report.html") as file:
        file.write(document.encode())
    return out / "report.html"

"""A file of results: JSON with one row a line, so that a diff shows which rows were measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gossamer import files

Result = dict[str, Any]  # {"suite": name, "sections": {name: {"environment": {}, "settings": {}, "rows": [{}, ...]}}}
_FACTS = ("environment", "settings", "unfinished")  # the last only where a run was stopped in the section


def text(result: Result) -> str:
    """The file's text.

    >>> from gossamer.bench import results
    >>> section = {"environment": {}, "settings": {"reps": 3}, "rows": [{"n": 1}, {"n": 2}]}
    >>> print(results.text({"suite": "detect", "sections": {"tiles": section}}), end="")
    {"suite": "detect", "sections": {
    "tiles": {"environment": {}, "settings": {"reps": 3}, "rows": [
    {"n": 1},
    {"n": 2}
    ]}
    }}
    """
    parts = []
    for name, section in result["sections"].items():
        facts = ", ".join(f"{json.dumps(key)}: {json.dumps(section[key])}" for key in _FACTS if key in section)
        rows = ",\n".join(map(json.dumps, section["rows"]))
        parts.append(f'{json.dumps(name)}: {{{facts}, "rows": [\n{rows}\n]}}')
    return f'{{"suite": {json.dumps(result["suite"])}, "sections": {{\n' + ",\n".join(parts) + "\n}}\n"


def write(path: Path, result: Result) -> None:
    """Write the file whole, or leave the one of before."""
    with files.replacing(path) as file:
        file.write(text(result).encode())


def read(path: Path, suite: str) -> Result:
    """An earlier result of this suite.

    Raises:
        ValueError: the file is no result, or one of another suite.
    """
    try:
        result = files.parse_json(files.read(path, limit=1 << 26))
        of, sections = result["suite"], result["sections"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"json_path {path} holds no earlier result, whose sections could be kept: {error!r}") from None
    if of != suite or not isinstance(sections, dict):
        raise ValueError(f"json_path {path} holds a result of suite {of!r}; expected {suite!r}")
    return dict(result)

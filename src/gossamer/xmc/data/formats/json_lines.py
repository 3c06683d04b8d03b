"""One JSON object a line, plain or .gz: `{"uid": ..., "title": ..., "content": ..., "target_ind": [...], ...}`.

A row's text is its title and its content. `target_ind` are its labels; `target_rel`, where there is one, says how much
each counts, and a label of 0 does not.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gossamer import files
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.formats.lines import blocks, refuse
from gossamer.xmc.data.formats.rows import MOST_COLUMNS, Builder, Rows
from gossamer.xmc.data.formats.text import check_utf8, joined
from gossamer.xmc.data.texts import Texts


def read_json(path: Path, labels: int | None) -> tuple[Texts, Csr | None]:
    """The texts, and the label sets unless the first line has none (a file of the labels themselves).

    Args:
        labels: how many there are; None for as many as the file names.

    Raises:
        Malformed: the file is empty, or a line is not such an object.
        FileNotFoundError: there is no file.
    """
    texts: list[Texts] = []
    rows: list[Rows] = []
    has_labels: bool | None = None
    limit = MOST_COLUMNS if labels is None else labels
    for block in blocks(path):
        words, counts, ids = [], [], []
        for number, line in enumerate(block.lines(), block.first):
            record = _record(line, path, number)
            if has_labels is None:
                has_labels = "target_ind" in record
            words.append(_text(record, path, number))
            mine = _labels(record, path, number, limit) if has_labels else []
            counts.append(len(mine))
            ids += mine
        texts.append(Texts.of(words))
        rows.append(Rows(np.array(counts, np.int64), np.array(ids, np.int64), None))
    if not texts:
        refuse(path, None, "it is empty; expected one JSON object a line")
    if not has_labels:
        return joined(texts), None
    highest = max((int(part.ids.max()) for part in rows if len(part.ids)), default=-1)
    builder = Builder(path, highest + 1 if labels is None else labels, values=False)
    for part in rows:
        builder.add(part)
    return joined(texts), builder.finish()


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    text = check_utf8(line, path, number)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        refuse(path, number, "it is not JSON; expected one object a line")
    if not isinstance(record, dict):
        refuse(path, number, f"it is a JSON {type(record).__name__}; expected an object")
    return record


def _text(record: dict[str, Any], path: Path, number: int) -> str:
    fields = [record.get(name) for name in ("title", "content")]
    if all(field is None for field in fields):
        refuse(path, number, "it has neither 'title' nor 'content'")
    for name, field in zip(("title", "content"), fields, strict=True):
        if field is not None and not isinstance(field, str):
            refuse(path, number, f"its {name!r} is {field!r:.100}; expected text")
    return " ".join(field for field in fields if field)


def _labels(record: dict[str, Any], path: Path, number: int, labels: int) -> list[int]:
    mine = record.get("target_ind")
    if not isinstance(mine, list):
        refuse(path, number, f"its 'target_ind' is {mine!r:.100}; expected a list of labels")
    for label in mine:
        if type(label) is not int or not 0 <= label < labels:
            refuse(path, number, f"it has the label {label!r:.100}; expected a number from 0 to {labels - 1}")
    weights = record.get("target_rel")
    if weights is None:
        return mine
    if not isinstance(weights, list) or len(weights) != len(mine) or not all(type(w) in (int, float) for w in weights):
        refuse(path, number, f"its 'target_rel' is {weights!r:.100}; expected {len(mine)} numbers, one for each label")
    return [label for label, weight in zip(mine, weights, strict=True) if weight]


def write_json(path: Path, texts: Sequence[str], labels: Csr | None) -> None:
    """One object a line, `title` for the text; packed if the name ends with .gz, the same bytes for the same data.

    Raises:
        ValueError: not as many texts as rows of labels.
    """
    if labels is not None and labels.shape[0] != len(texts):
        raise ValueError(f"there are {len(texts)} texts and {labels.shape[0]} rows of labels; expected as many")
    with files.replacing(path) as raw:
        file: Any = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for number, text in enumerate(texts):
            record: dict[str, Any] = {"uid": str(number), "title": text}
            if labels is not None:
                mine = labels.row(number).tolist()
                record |= {"target_ind": mine, "target_rel": [1.0] * len(mine)}
            file.write((json.dumps(record) + "\n").encode())
        if file is not raw:
            file.close()

"""The two text formats of the extreme classification repository, and pairs of rows and labels.

old: `rows columns labels`, then a line `l1,l2 f:v f:v` for each row; a line without labels begins with a space
new: `rows columns`, then a line `i:v i:v` for each row; an empty line is an empty row
pairs: a line `row label` for each, no header: labels that are never to be predicted for a row of the same part
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from gossamer import files
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.formats.lines import Block, blocks, refuse
from gossamer.xmc.data.formats.rows import MOST_COLUMNS, Builder, Rows, column, count, parse_ids, parse_pairs

MOST_ROWS = (1 << 40) - 1
_WRITTEN = 8192  # rows written at a time


def read_sparse(path: Path, *, values: bool) -> Csr:
    """The new format. Without `values` (label sets) an entry is there if it is named, unless its value is 0.

    Raises:
        Malformed: a header that the lines do not agree with, a column out of range, a value that is no finite number.
        FileNotFoundError: there is no file.
    """
    (rows, columns), body = _opened(path, ("rows", "columns"))
    builder = Builder(path, columns, values=values)
    for block in body:
        found = parse_pairs(block.lines(), path, block.first, columns)
        _check_room(path, block, builder.rows, rows)
        builder.add(found if values else _present(found))
    return _finished(path, builder, rows)


def read_old(path: Path) -> tuple[Csr, Csr]:
    """The old format: features and label sets.

    Raises:
        Malformed: as `read_sparse`.
        FileNotFoundError: there is no file.
    """
    (rows, columns, labels), body = _opened(path, ("rows", "columns", "labels"))
    features, targets = Builder(path, columns, values=True), Builder(path, labels, values=False)
    for block in body:
        fields = [line.partition(b" ") for line in block.lines()]
        _check_room(path, block, features.rows, rows)
        targets.add(parse_ids([head for head, _, _ in fields], path, block.first, labels))
        features.add(parse_pairs([rest for _, _, rest in fields], path, block.first, columns))
    return _finished(path, features, rows), targets.finish()


def header_length(path: Path) -> int:
    """How many words the first line has: 3 in the old format, 2 in the new one, 0 in an empty file."""
    for block in blocks(path, size=4096):
        return len(block.lines()[0].split())
    return 0


def read_pairs(path: Path, shape: tuple[int, int]) -> Csr:
    """Pairs `row label` of a matrix of this shape, in any order; a file of none is one that excludes nothing.

    Raises:
        Malformed: anything but two numbers on a line, or one that is out of range.
        FileNotFoundError: there is no file.
    """
    found: list[np.ndarray] = []
    for block in blocks(path):
        pairs = []
        for number, line in enumerate(block.lines(), block.first):
            words = line.split()
            if len(words) != 2:
                refuse(path, number, f"it has {len(words)} words; expected a row and a label")
            pairs.append((column(words[0], path, number, shape[0]), column(words[1], path, number, shape[1])))
        found.append(np.array(pairs, np.int64).reshape(-1, 2))
    every = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    every = every[np.argsort(every[:, 0], kind="stable")]
    builder = Builder(path, shape[1], values=False)
    builder.add(Rows(np.bincount(every[:, 0], minlength=shape[0]).astype(np.int64), every[:, 1], None))
    return builder.finish()


def write_sparse(path: Path, matrix: Csr) -> None:
    """The new format; label sets get the value 1."""
    with files.replacing(path) as file:
        file.write(b"%d %d\n" % matrix.shape)
        for part in _parts(matrix):
            file.write("".join(row + "\n" for row in _pairs(part)).encode())


def write_old(path: Path, features: Csr, labels: Csr) -> None:
    """The old format.

    Raises:
        ValueError: features and labels are not of the same rows.
    """
    if features.shape[0] != labels.shape[0]:
        raise ValueError(f"features have {features.shape[0]} rows, labels {labels.shape[0]}; expected as many")
    with files.replacing(path) as file:
        file.write(b"%d %d %d\n" % (*features.shape, labels.shape[1]))
        for mine, theirs in zip(_parts(features), _parts(labels), strict=True):
            for row, names in zip(_pairs(mine), _split(theirs, [str(i) for i in theirs.indices.tolist()]), strict=True):
                file.write(f"{','.join(names)} {row}\n".encode())


def write_pairs(path: Path, matrix: Csr) -> None:
    """The pairs of a matrix, row by row."""
    with files.replacing(path) as file:
        for number in range(matrix.shape[0]):
            file.write("".join(f"{number} {label}\n" for label in matrix.row(number).tolist()).encode())


def _opened(path: Path, what: tuple[str, ...]) -> tuple[tuple[int, ...], Iterator[Block]]:
    """The numbers of the header, and the lines after it."""
    found = blocks(path)
    start = next(found, None)
    if start is None:
        refuse(path, None, f"it is empty; expected a header of {', '.join(what)}")
    head, _, rest = start.content.partition(b"\n")
    words = head.split()
    if len(words) != len(what):
        refuse(path, 1, f"the header has {len(words)} words; expected {len(what)}: {', '.join(what)}")
    numbers = tuple(
        count(word, path, name, MOST_ROWS if name == "rows" else MOST_COLUMNS)
        for word, name in zip(words, what, strict=True)
    )

    def body() -> Iterator[Block]:
        if b"\n" in start.content:
            yield Block(rest, 2)
        yield from found

    return numbers, body()


def _check_room(path: Path, block: Block, before: int, rows: int) -> None:
    """No more rows are kept than the header announced."""
    if before + block.content.count(b"\n") + 1 > rows:
        refuse(path, 1, f"the header says {rows} rows, but the file has more")


def _finished(path: Path, builder: Builder, rows: int) -> Csr:
    if builder.rows != rows:
        refuse(path, 1, f"the header says {rows} rows, but the file has {builder.rows}")
    return builder.finish()


def _present(rows: Rows) -> Rows:
    """Label sets: the entries that are not 0."""
    assert rows.values is not None
    kept = rows.values != 0
    if kept.all():
        return Rows(rows.counts, rows.ids, None)
    row = np.repeat(np.arange(len(rows.counts)), rows.counts)[kept]
    return Rows(np.bincount(row, minlength=len(rows.counts)).astype(np.int64), rows.ids[kept], None)


def _parts(matrix: Csr) -> Iterator[Csr]:
    for start in range(0, matrix.shape[0], _WRITTEN):
        yield matrix.slice(start, start + _WRITTEN)


def _pairs(part: Csr) -> list[str]:
    """The text of each row; a value has the fewest digits that give its float32 back."""
    values = ["1"] * part.nnz if part.values is None else map(str, part.values.numpy())
    words = [f"{name}:{value}" for name, value in zip(part.indices.tolist(), values, strict=True)]
    return [" ".join(row) for row in _split(part, words)]


def _split(part: Csr, words: list[str]) -> list[list[str]]:
    ends = part.offsets.tolist()
    return [words[start:end] for start, end in pairwise(ends)]

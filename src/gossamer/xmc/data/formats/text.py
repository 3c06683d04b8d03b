"""One text a line, and label sets whose labels are words.

trn_X.txt            one text a line, UTF-8
train_labels.txt     the labels of a row, words between spaces (as LightXML has them)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gossamer import files
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.formats.lines import blocks, refuse
from gossamer.xmc.data.formats.rows import Builder, Rows
from gossamer.xmc.data.texts import Texts


def read_texts(path: Path) -> Texts:
    """One text a line.

    Raises:
        Malformed: the file is empty, or a line is not UTF-8.
        FileNotFoundError: there is no file.
    """
    parts: list[Texts] = []
    for block in blocks(path):
        lines = block.lines()
        try:
            str(block.content, "utf-8")
        except UnicodeDecodeError:
            for number, line in enumerate(lines, block.first):
                check_utf8(line, path, number)
        parts.append(Texts.of_bytes(lines))
    if not parts:
        refuse(path, None, "it is empty; expected one text a line")
    return joined(parts)


def check_utf8(line: bytes, path: Path, number: int) -> str:
    """The line as text."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        refuse(path, number, f"it is not UTF-8: byte {line[error.start]:#04x} at place {error.start} of the line")


def joined(parts: list[Texts]) -> Texts:
    """All texts in one."""
    content = np.concatenate([part.content for part in parts])
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Texts(content, np.concatenate(([0], np.cumsum(counts))).astype(np.int64))


def read_named(paths: list[Path]) -> tuple[list[Csr], Texts]:
    """Label sets of words, one file a part; the labels are numbered in the order of their names, over all files.

    Returns:
        The label sets, and the names.

    Raises:
        Malformed: a file is empty, or a name is not UTF-8.
        FileNotFoundError: there is no file.
    """
    numbers: dict[bytes, int] = {}
    found: list[list[Rows]] = []
    for path in paths:
        rows: list[Rows] = []
        for block in blocks(path):
            lines = [line.split() for line in block.lines()]
            known = len(numbers)
            ids = [numbers.setdefault(name, len(numbers)) for line in lines for name in line]
            if len(numbers) > known:
                for number, line in enumerate(lines, block.first):
                    for name in line:
                        check_utf8(name, path, number)
            rows.append(Rows(np.array([len(line) for line in lines], np.int64), np.array(ids, np.int64), None))
        if not rows:
            refuse(path, None, "it is empty; expected the labels of a row on each line")
        found.append(rows)
    names = sorted(numbers)
    place = np.empty(len(names), np.int64)
    place[[numbers[name] for name in names]] = np.arange(len(names))
    out = []
    for path, rows in zip(paths, found, strict=True):
        builder = Builder(path, len(names), values=False)
        for part in rows:
            builder.add(Rows(part.counts, place[part.ids], None))
        out.append(builder.finish())
    return out, Texts.of_bytes(names)


def one_line(text: str) -> str:
    """A text without line breaks, which a file of one text a line cannot hold."""
    return " ".join(text.replace("\r", "\n").split("\n"))


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """One text a line; a line break within a text becomes a space."""
    with files.replacing(path) as file:
        for text in texts:
            file.write((one_line(text) + "\n").encode("utf-8", "replace"))


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError if a name is empty or holds a blank."""
    for name in names:
        if name.encode("utf-8", "replace").split() != [name.encode("utf-8", "replace")]:
            raise ValueError(f"the label {name!r} cannot be written between spaces; expected names without blanks")


def write_named(path: Path, labels: Csr, names: Iterable[str]) -> None:
    """Label sets of words.

    Raises:
        ValueError: a name is empty or holds a blank.
    """
    words = list(names)
    check_names(words)
    with files.replacing(path) as file:
        for row in range(labels.shape[0]):
            file.write((" ".join(words[label] for label in labels.row(row).tolist()) + "\n").encode("utf-8", "replace"))

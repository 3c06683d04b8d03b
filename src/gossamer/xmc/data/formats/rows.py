"""Rows of numbers: `3:0.5 7:1` (pairs) and `3,7` (ids), parsed a block at a time.

A block of well-formed lines is parsed at once by array operations. Whatever these do not expect goes line by line
through plain Python, which is the definition, and which knows what is wrong and where.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gossamer.xmc.data.csr import Csr, index_type
from gossamer.xmc.data.formats.lines import refuse, shown

MOST_COLUMNS = 1 << 32  # what is numbered beyond this is an identifier of something, no column
_ID = re.compile(rb"[0-9]{1,18}")
_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PAIR_BYTES = b"0123456789+-.eE: \t\n\r"
_ID_BYTES = b"0123456789,\n"


@dataclass(frozen=True)
class Rows:
    """Some rows: how many entries each has, their columns, and their values where there are any."""

    counts: np.ndarray
    ids: np.ndarray
    values: np.ndarray | None


def parse_pairs(lines: list[bytes], path: Path, first: int, columns: int) -> Rows:
    """Rows of `column:value` between spaces; an empty line is an empty row.

    Raises:
        Malformed: anything else, a column that is not below `columns`, or a value that float32 cannot hold.
    """
    found = _pairs_at_once(b"\n".join(lines), len(lines), columns)
    return found or _collected([_pairs(line, path, first + i, columns) for i, line in enumerate(lines)])


def parse_ids(lines: list[bytes], path: Path, first: int, columns: int) -> Rows:
    """Rows of ids between commas; an empty line is an empty row.

    Raises:
        Malformed: anything else, or an id that is not below `columns`.
    """
    found = _ids_at_once(b"\n".join(lines), len(lines), columns)
    if found:
        return found
    rows = _collected([_ids(line, path, first + i, columns) for i, line in enumerate(lines)])
    return Rows(rows.counts, rows.ids, None)


def column(text: bytes, path: Path, line: int, columns: int) -> int:
    """One id below `columns`."""
    if not _ID.fullmatch(text) or int(text) >= columns:
        refuse(path, line, f"it has the id {shown(text)!r}; expected a number from 0 to {columns - 1}")
    return int(text)


def count(text: bytes, path: Path, what: str, most: int) -> int:
    """One number of the header, on the first line."""
    if not _ID.fullmatch(text) or int(text) > most:
        refuse(path, 1, f"the header says {shown(text)!r} {what}; expected a number from 0 to {most}")
    return int(text)


def number(text: bytes, path: Path, line: int) -> float:
    """One value that is finite as float32."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= _LARGEST:
        refuse(path, line, f"it has the value {shown(text)!r}; expected a finite float32")
    return value


_LARGEST = float(np.finfo(np.float32).max)


def _pairs(line: bytes, path: Path, number_of_line: int, columns: int) -> list[tuple[int, float]]:
    out = []
    for pair in line.split():
        name, colon, value = pair.partition(b":")
        if not colon:
            refuse(path, number_of_line, f"it has {shown(pair)!r}; expected column:value")
        out.append((column(name, path, number_of_line, columns), number(value, path, number_of_line)))
    return out


def _ids(line: bytes, path: Path, number_of_line: int, columns: int) -> list[tuple[int, float]]:
    if not line:
        return []
    return [(column(name, path, number_of_line, columns), 1.0) for name in line.split(b",")]


def _collected(rows: list[list[tuple[int, float]]]) -> Rows:
    flat = [pair for row in rows for pair in row]
    return Rows(
        np.array([len(row) for row in rows], np.int64),
        np.array([name for name, _ in flat], np.int64),
        np.array([value for _, value in flat], np.float32),
    )


def _pairs_at_once(content: bytes, lines: int, columns: int) -> Rows | None:
    """The rows, if every line is plain; None if one has to be looked at."""
    if content.translate(None, _PAIR_BYTES):
        return None
    if not content:
        return Rows(np.zeros(lines, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    text = np.frombuffer(content, np.uint8)
    colon, blank = text == ord(":"), text <= ord(" ")
    inside = ~blank
    starts = np.flatnonzero(inside & np.concatenate(([True], blank[:-1])))
    colons = np.flatnonzero(colon)
    # every word has one colon, behind at least one and at most 15 digits (which a float64 holds exactly)
    if len(starts) != len(colons) or not ((starts < colons) & (colons - starts <= 15)).all():
        return None
    other = np.concatenate(([0], np.cumsum((text < ord("0")) | (text > ord("9")))))
    if (other[colons] != other[starts]).any() or np.append(blank, True)[colons + 1].any():
        return None
    numbers = _numbers(content.replace(b":", b" "), np.float64)
    if numbers is None or len(numbers) != 2 * len(starts):
        return None
    ids, values = numbers[::2].astype(np.int64), numbers[1::2]
    if len(ids) and (ids.max() >= columns or not np.abs(values).max() <= _LARGEST):
        return None
    return Rows(_per_line(text, starts, lines), ids, values.astype(np.float32))


def _ids_at_once(content: bytes, lines: int, columns: int) -> Rows | None:
    if content.translate(None, _ID_BYTES):
        return None
    if not content:
        return Rows(np.zeros(lines, np.int64), np.empty(0, np.int64), None)
    text = np.frombuffer(content, np.uint8)
    digit = text >= ord("0")
    starts = np.flatnonzero(digit & np.concatenate(([True], ~digit[:-1])))
    ends = np.flatnonzero(digit & np.concatenate((~digit[1:], [True])))
    commas = np.flatnonzero(text == ord(","))
    padded = np.concatenate(([False], digit, [False]))
    if not (padded[commas] & padded[commas + 2]).all() or (len(starts) and (ends - starts).max() >= 18):
        return None
    ids = _numbers(content.replace(b",", b" "), np.int64)
    if ids is None or len(ids) != len(starts) or (len(ids) and ids.max() >= columns):
        return None
    return Rows(_per_line(text, starts, lines), ids, None)


def _numbers(content: bytes, kind: type[np.float64] | type[np.int64]) -> np.ndarray | None:
    if not content.strip():
        return np.empty(0, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says that it stopped before the end
        try:
            return np.fromstring(content, kind, sep=" ")
        except (DeprecationWarning, ValueError):
            return None


def _per_line(text: np.ndarray, starts: np.ndarray, lines: int) -> np.ndarray:
    """How many of the places `starts` lie in each line."""
    newlines = np.flatnonzero(text == ord("\n"))
    return np.bincount(np.searchsorted(newlines, starts), minlength=lines).astype(np.int64)


class Builder:
    """A Csr from rows that come in order; each block is sorted, and what it names twice joined, as it comes."""

    def __init__(self, path: Path, columns: int, *, values: bool) -> None:
        self.path, self.columns, self.rows = path, columns, 0
        self._counts: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._values: list[np.ndarray] | None = [] if values else None
        self._type = np.int32 if index_type(columns) == torch.int32 else np.int64

    def add(self, new: Rows) -> None:
        """Append rows; values of one column are added up."""
        new = _sorted(new)
        self.rows += len(new.counts)
        self._counts.append(new.counts)
        self._ids.append(new.ids.astype(self._type))
        if self._values is not None:
            assert new.values is not None
            self._values.append(new.values)

    def finish(self) -> Csr:
        """The matrix; the builder is empty afterwards."""
        offsets = np.zeros(self.rows + 1, np.int64)
        np.cumsum(_joined(self._counts, np.int64), out=offsets[1:])
        values = None if self._values is None else torch.from_numpy(_joined(self._values, np.float32))
        ids = torch.from_numpy(_joined(self._ids, self._type))
        try:
            return Csr(torch.from_numpy(offsets), ids, values, (self.rows, self.columns)).validate()
        except ValueError as error:  # values of one column that are too large together
            refuse(self.path, None, str(error))


def _sorted(rows: Rows) -> Rows:
    """The same rows with rising ids, none twice."""
    row = np.repeat(np.arange(len(rows.counts)), rows.counts)
    rising = (row[1:] != row[:-1]) | (rows.ids[1:] > rows.ids[:-1])
    if rising.all():
        return rows
    order = np.lexsort((rows.ids, row))
    row, ids = row[order], rows.ids[order]
    firsts = np.flatnonzero(np.concatenate(([True], (row[1:] != row[:-1]) | (ids[1:] != ids[:-1]))))
    with np.errstate(over="ignore"):  # what is too large is said once all is read
        values = None if rows.values is None else np.add.reduceat(rows.values[order], firsts)
    return Rows(np.bincount(row[firsts], minlength=len(rows.counts)).astype(np.int64), ids[firsts], values)


def _joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
    """All parts in one array; each is let go once it is copied, so that no more than one and the whole are held."""
    out: np.ndarray = np.empty(sum(len(part) for part in parts), kind)
    place = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        out[place : place + len(part)] = part
        place += len(part)
    return out

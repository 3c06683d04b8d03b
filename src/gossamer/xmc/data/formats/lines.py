"""A text file, plain or .gz, in blocks of whole lines: no more of it is held than a block."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from gossamer import files
from gossamer.data.archive import RATIO, SMALL

BLOCK = 1 << 22  # bytes read at a time
LONGEST = 1 << 26  # bytes of the longest line that is read


class Malformed(ValueError):
    """A file that is not as its format says; the message begins with the file, and the line where there is one."""


def refuse(path: Path, line: int | None, what: str) -> NoReturn:
    """Raise Malformed: `path:line: what`."""
    place = shown(path) if line is None else f"{shown(path)}:{line}"
    raise Malformed(f"{place}: {what}")


def shown(name: Path | bytes | str) -> str:
    """A name, or a piece of a file, as text that fits a line, whatever its bytes are."""
    text = (name if isinstance(name, bytes) else os.fsencode(name)).decode("utf-8", "backslashreplace")
    return text if len(text) <= 200 or isinstance(name, Path) else text[:200] + "..."


@dataclass(frozen=True)
class Block:
    """Whole lines, joined by newlines, without the last one's.

    Attributes:
        first: the number in the file of the first line, from 1.
    """

    content: bytes
    first: int

    def lines(self) -> list[bytes]:
        return [line[:-1] if line.endswith(b"\r") else line for line in self.content.split(b"\n")]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked content of a file; what goes wrong while it is open is Malformed and names it."""
    try:
        with files.open_file(path) as raw:
            yield gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[misc]
    except Malformed:
        raise
    except EOFError:
        refuse(path, None, "it is cut off before its end")
    except (gzip.BadGzipFile, zlib.error) as error:
        refuse(path, None, f"it is no whole .gz file: {error}")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {shown(path)}") from None
    except OSError as error:
        refuse(path, None, f"it cannot be read: {error.strerror or error}")
    except ValueError as error:
        refuse(path, None, str(error))


def blocks(path: Path, *, size: int | None = None) -> Iterator[Block]:
    """The file block by block, the last line with or without its newline; a file of no bytes has no block.

    Raises:
        Malformed: it is no file, is cut off, has too long a line, or unpacks to more than a text can shrink to.
    """
    step, first, rest = size or BLOCK, 1, b""
    with opened(path) as file:
        most = max(SMALL, RATIO * os.stat(path).st_size)
        read = 0
        while chunk := file.read(step):
            read += len(chunk)
            if read > most:
                refuse(path, None, f"its {os.stat(path).st_size} bytes unpack to more than {most}")
            end = chunk.rfind(b"\n")
            if end < 0:
                rest += chunk
                if len(rest) > LONGEST:
                    refuse(path, first, f"the line is longer than {LONGEST} bytes")
                continue
            block = Block(rest + chunk[:end], first)
            rest = chunk[end + 1 :]
            first += block.content.count(b"\n") + 1
            yield block
        if rest:
            yield Block(rest, first)

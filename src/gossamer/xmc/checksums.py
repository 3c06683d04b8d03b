"""Checksums of what a saved classifier consists of, so that a damaged file is an error and not another prediction.

The record has those of all files but the head's arrays, which the head's own header has: they are hashed while they are
written, once, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gossamer.xmc.heads import store

SMALL = 1 << 21
"""Bytes of a head's arrays up to which each load compares them: 10 ms where a core hashes 200 MB a second."""
_ARRAY = ".bin"


def of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files in `folder`, but for the arrays of heads. What was just written is read again, from memory."""
    return {name: store.digest(folder / name) for name in names if not name.endswith(_ARRAY)}


def check(folder: Path, record: Path, digests: Mapping[str, str]) -> None:
    """Compare files in `folder` with what `of` gave.

    Args:
        record: the file that has the checksums, for what is said.

    Raises:
        FileNotFoundError, ValueError: naming the first file that is missing, cannot be read, or is not what it was.
    """
    for name, expected in digests.items():
        try:
            found = store.digest(folder / name)
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder / name} is missing, which {record} names") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
        if found != expected:
            raise ValueError(f"{folder / name} is damaged or was edited: its checksum does not match its content")


def is_small(head: Path) -> bool:
    """Whether a head's arrays are so small together that comparing them takes no time that anybody notices."""
    return sum(path.stat().st_size for path in head.rglob(f"*{_ARRAY}")) <= SMALL

"""Folders that are ours by a record in them: what may be written there, and what may be deleted.

The record is a JSON file with a checksum, written before anything else and in one step. A folder with other files and
no record is somebody else's. Of a folder of ours, what the record names is deleted, and nothing that a link leads to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer import files

LIMIT = 1 << 20  # bytes of a record


@dataclass(frozen=True)
class Record:
    """The record of a kind of folder.

    Args:
        file: its name. format, version: what it says, so that others' files of that name are not taken for ours.
        oldest: the first version that can still be read; None: this one only.
        what: what such a folder is, in words.
        fields: what else it must have, and of which type.
        advice: what to do about one that cannot be read.
    """

    file: str
    format: str
    version: int
    what: str
    fields: tuple[tuple[str, type], ...] = ()
    advice: str = ""
    oldest: int | None = None

    def find(self, folder: Path, flag: str = "") -> dict[str, Any] | None:
        """What the record says; None where nothing is, but for what a process left that was killed in its first moment.

        Args:
            flag: said before the folder's name.

        Raises:
            NotADirectoryError: it is no folder. FileExistsError: it holds files of others only.
            ValueError: the record is damaged, or not ours.
        """
        if not os.path.lexists(folder):
            return None
        if not folder.is_dir():
            raise NotADirectoryError(f"{flag}{folder} is {files.kind(folder)}; expected a folder")
        if all(files.draft_of(name) == self.file for name in os.listdir(folder)):
            return None
        if not os.path.lexists(folder / self.file):
            said = f"{flag}{folder} holds files but no {self.file}, so it is no {self.what} of this program"
            raise FileExistsError(f"{said}; choose another")
        return self.read(folder)

    def read(self, folder: Path) -> dict[str, Any]:
        """What the record says.

        Raises:
            ValueError: there is none, or it is damaged, of another program, or of another version.
        """
        path = folder / self.file
        try:
            record = files.parse_json(files.read(path, limit=LIMIT))
            if not isinstance(record, dict) or record.get("format") != self.format:
                raise ValueError("it is not of this program, or was written by an older version")
            version, oldest = record.get("version"), self.version if self.oldest is None else self.oldest
            if type(version) is not int or not oldest <= version <= self.version:
                expected = f"{self.version}" if oldest == self.version else f"{oldest} to {self.version}"
                raise ValueError(f"its version is {version!r}, expected {expected}")
            files.check_seal(record)
            for name, kind in self.fields:
                if not isinstance(record.get(name), kind):
                    raise ValueError(f"it lacks {name!r}")
        except (OSError, ValueError) as error:
            advice = f"; {self.advice}" if self.advice else ""
            raise ValueError(f"{path} cannot be read: {error}{advice}") from error
        return record

    def write(self, folder: Path, **content: Any) -> None:
        """Replace the record, in one step."""
        record = {"format": self.format, "version": self.version, **content}
        files.write_json(folder / self.file, files.sealed(record))


def remove(folder: Path, names: Iterable[Any]) -> None:
    """Delete files by their names in `folder`, and the folders in it that are empty then; nothing through a link."""
    for name in names:
        inner = Path(str(name))
        path = folder / inner
        between = [path, *(folder / parent for parent in inner.parents if parent.parts)]
        if inner.is_absolute() or ".." in inner.parts or any(each.is_symlink() for each in between):
            continue
        if path.is_file():
            path.unlink()
        for parent in between[1:]:
            if not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()

"""Checkpoints: one file per stage, replaced as a whole, holding tensors, numbers and text only, with a checksum.

The file is torch's, a zip archive; the SHA-256 of all of it is the archive's comment, which `torch.load` reads over.
It is compared before anything in the file is believed.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from gossamer import files
from gossamer.cli.train.config import DIGEST

FORMAT = 2
_MARK = b"gossamer sha256 "
_COMMENT = len(_MARK) + 64
_BLOCK = 1 << 20


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`; a run that dies while writing leaves the file of before.

    Raises:
        OSError: it cannot be written, as `files.replacing` says it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        with files.honest(file) as writer:
            torch.save({"format": FORMAT, **content}, cast(IO[bytes], writer))
        size = file.tell()
        # The archive ends with the length of its comment, in two bytes.
        file.seek(size - 2)
        file.write(struct.pack("<H", _COMMENT))
        file.write(_MARK + _digest(file, size).encode())


def _digest(file: BinaryIO, size: int) -> str:
    """SHA-256 of the first `size` bytes; the file stands behind them then."""
    digest = hashlib.sha256()
    file.seek(0)
    while size:
        block = file.read(min(size, _BLOCK))
        if not block:
            break
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def _check(file: BinaryIO) -> None:
    """Raise ValueError unless the file ends with the checksum of what lies before it."""
    size = file.seek(0, 2) - _COMMENT
    file.seek(max(0, size))
    comment = file.read()
    if size < 0 or not comment.startswith(_MARK):
        raise ValueError(
            "it has no checksum, so it is damaged, is not of this program, or was written by an older version: "
            "--overwrite starts the run again"
        )
    if comment != _MARK + _digest(file, size).encode():
        raise ValueError("it is damaged: its checksum does not match its content; --overwrite starts the run again")
    file.seek(0)


def load(path: Path, identity: dict[str, Any], *, longer: str | None = None) -> dict[str, Any]:
    """Read a checkpoint and make sure that it belongs to this run, which may have more of the setting `longer`.

    Raises:
        ValueError: the file is damaged or no checkpoint, or was written by a run with other settings.
    """
    try:
        with files.open_file(path) as file:
            _check(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint {path} is not of this program: its format is {found!r}, expected {FORMAT}")
    there = content.get("identity")
    if not isinstance(there, dict):
        raise ValueError(f"checkpoint {path}: identity is {there!r:.80}; expected the settings of a run")
    differ(there, identity, f"checkpoint {path}", longer=longer)
    return content


def differ(there: dict[str, Any], here: dict[str, Any], what: str, *, longer: str | None = None) -> None:
    """Raise a ValueError that lists every setting in which `there` is not `here`; `here` may have more of `longer`.

    What the data held is compared where both say so, and only where nothing else differs: other flags may read it
    otherwise.
    """
    names = [n for n in {**there, **here} if n != DIGEST]
    names = [n for n in names if n not in there or n not in here or repr(there[n]) != repr(here[n])]
    if longer in names and type(there.get(longer)) is int and there[longer] < here[longer]:
        names.remove(longer)
    if names:
        listed = ", ".join(f"{name} {there.get(name)!r:.80} (now {here.get(name)!r:.80})" for name in names)
        raise ValueError(f"{what} belongs to a run with other settings: {listed}")
    if DIGEST in there and DIGEST in here and there[DIGEST] != here[DIGEST]:
        raise ValueError(
            f"{what} belongs to a run on other data: what --data {here.get('data')} holds has changed since; put it "
            "back as it was, or begin a new run with another --out"
        )

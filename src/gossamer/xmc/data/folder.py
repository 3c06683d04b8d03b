"""The folder that a data set is saved in: what may be written there, and what may be deleted.

A folder is ours if it holds our `data.json`, which is written first and in one step. What is deleted is what a data set
of ours consists of, name by name; files of others stay.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gossamer import files

RECORD = "data.json"
CACHE = ".gossamer-xmc.npz"
FORMAT, VERSION = "gossamer.xmc.data", 1
_LIMIT = 1 << 20


def check(out: Path, *, overwrite: bool) -> None:
    """Raise unless a data set may be saved in `out`; nothing is changed.

    Raises:
        FileExistsError: it holds files that are no data set of ours, or one that `overwrite` does not give up.
        NotADirectoryError: it is no folder.
        ValueError: its data.json is not ours.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise NotADirectoryError(f"{out} is {files.kind(out)}; expected a folder")
    if all(files.draft_of(name) == RECORD for name in os.listdir(out)):
        return
    if not os.path.lexists(out / RECORD):
        raise FileExistsError(
            f"{out} holds files but no {RECORD}, so it is no data set of this program; choose another"
        )
    _record(out)
    if not overwrite:
        raise FileExistsError(f"{out} holds a data set already; overwrite deletes it")


def prepare(out: Path, names: Collection[str], record: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder, empty of an earlier data set, and write down what will lie in it.

    Args:
        names: the files that are about to be written.
    """
    check(out, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    before = _record(out).get("files", []) if (out / RECORD).exists() else []
    header = {"format": FORMAT, "version": VERSION, **record}
    # Until the last file of before is gone, it is named too: whoever is killed in between leaves nothing unnamed.
    files.write_json(out / RECORD, files.sealed({**header, "files": sorted({*before, *names})}))
    for name in (*before, CACHE):
        _remove(out, name)
    files.write_json(out / RECORD, files.sealed({**header, "files": sorted(names)}))


def _remove(out: Path, name: str) -> None:
    """Delete a file of the folder, or of a folder in it; nothing that a link leads to."""
    inner, path = Path(name), out / name
    if inner.is_absolute() or ".." in inner.parts or len(inner.parts) > 2:
        return
    if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
        path.unlink()
        if path.parent != out and not any(path.parent.iterdir()):
            path.parent.rmdir()


def described(folder: Path) -> tuple[str, dict[str, str | int | float]]:
    """The name and the facts that data.json gives, if it is ours; else the folder's own name and none."""
    if not (folder / RECORD).is_file():
        return folder.resolve().name, {}
    try:
        record = _record(folder)
    except ValueError:  # a file of that name says nothing about the rest of the folder
        return folder.resolve().name, {}
    facts = record.get("facts")
    kept = {str(k): v for k, v in facts.items() if isinstance(v, (str, int, float))} if isinstance(facts, dict) else {}
    return str(record.get("name")), kept


def _record(out: Path) -> dict[str, Any]:
    path = out / RECORD
    try:
        record = files.parse_json(files.read(path, limit=_LIMIT))
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise ValueError("it is not of this program, or of another version")
        files.check_seal(record)
        if not isinstance(record.get("files"), list) or not all(isinstance(name, str) for name in record["files"]):
            raise ValueError("it does not name its files")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; nothing here is deleted; choose another folder") from error
    return record

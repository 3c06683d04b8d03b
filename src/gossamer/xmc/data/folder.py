"""The folder that a data set is saved in: what may be written there, and what may be deleted.

A folder is ours if it holds our `data.json`, which is written first and in one step. What is deleted is what a data set
of ours consists of, name by name; files of others stay.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from gossamer.owned import Record, remove

RECORD = "data.json"
CACHE = ".gossamer-xmc.npz"
OURS = Record(
    RECORD, "gossamer.xmc.data", 1, "data set", (("files", list),), "nothing here is deleted; choose another folder"
)


def check(out: Path, *, overwrite: bool) -> None:
    """Raise unless a data set may be saved in `out`; nothing is changed.

    Raises:
        FileExistsError: it holds files that are no data set of ours, or one that `overwrite` does not give up.
        NotADirectoryError: it is no folder.
        ValueError: its data.json is not ours.
    """
    if OURS.find(out) is not None and not overwrite:
        raise FileExistsError(f"{out} holds a data set already; overwrite deletes it")


def prepare(out: Path, names: Collection[str], record: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder, empty of an earlier data set, and write down what will lie in it.

    Args:
        names: the files that are about to be written.
    """
    check(out, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    before = OURS.read(out)["files"] if (out / RECORD).exists() else []
    # Until the last file of before is gone, it is named too: whoever is killed in between leaves nothing unnamed.
    OURS.write(out, **record, files=sorted({*map(str, before), *names}))
    remove(out, (*before, CACHE))
    OURS.write(out, **record, files=sorted(names))


def described(folder: Path) -> tuple[str, dict[str, str | int | float]]:
    """The name and the facts that data.json gives, if it is ours; else the folder's own name and none."""
    if not (folder / RECORD).is_file():
        return folder.resolve().name, {}
    try:
        record = OURS.read(folder)
    except ValueError:  # a file of that name says nothing about the rest of the folder
        return folder.resolve().name, {}
    facts = record.get("facts")
    kept = {str(k): v for k, v in facts.items() if isinstance(v, (str, int, float))} if isinstance(facts, dict) else {}
    return str(record.get("name")), kept

"""The folder of a run: what may be written there, continued there, deleted there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from gossamer.cli.train.checkpoint import differ

RUN = "run.json"
CONTENTS = (RUN, "dense", "sparse", "compact", "events", "report.json", "report.html")


def inspect(out: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Raise unless this run may write to `out`; nothing is changed.

    Raises:
        FileExistsError: `out` holds another run and neither resume nor overwrite was asked for, or it holds files
            that are no run at all.
        NotADirectoryError: `out` is a file.
        ValueError: the run to resume has other settings, or its run.json is damaged.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; expected a folder")
    if not any(out.iterdir()):
        return
    if not (out / RUN).is_file():
        raise FileExistsError(f"--out {out} holds files but no {RUN}, so it is no run of this program; choose another")
    if not resume and not overwrite:
        raise FileExistsError(f"--out {out} holds a run already; --resume continues it, --overwrite deletes it")
    if resume:
        try:
            there = json.loads((out / RUN).read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{out / RUN} cannot be read: {error}") from error
        differ(there, identity, f"--resume: {out}")


def prepare(out: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder, empty of an earlier run when overwriting, and write down which run it is."""
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in CONTENTS:
            place = out / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
    draft = out / (RUN + ".part")
    draft.write_text(json.dumps({"identity": identity}, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, out / RUN)

"""The folder of a run: what may be written there, continued there, deleted there.

A folder is ours if it holds our `run.json`, which is written first and in one step. What is deleted is what a run
writes, name by name; files of others stay, and so do the folders they lie in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer import files
from gossamer.cli.train.checkpoint import differ
from gossamer.owned import Record

RUN = "run.json"
VERSION = 1
EVENTS = ".gossamer"  # the end of the name of every event file that a run writes
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True)
class Kind:
    """A kind of run: its name in run.json, the files that it writes by folder, and which others there are its own; the
    setting of which a run that is continued may have more."""

    format: str
    writes: Mapping[str, tuple[str, ...]]
    further: Callable[[str, str], bool] = lambda folder, file: False
    longer: str | None = None

    @property
    def record(self) -> Record:
        """The run.json of such a folder, which says whose it is."""
        advice = "nothing here is deleted or continued; choose another --out, or remove the folder yourself"
        return Record(RUN, self.format, VERSION, "run", (("identity", dict),), advice)


def _of_training(folder: str, file: str) -> bool:
    """Compact weights; events, but for those of other programs, which have other names."""
    weights = folder == "compact" and _WEIGHTS.fullmatch(file) is not None
    return weights or (folder.startswith("events/") and file.endswith(EVENTS))


TRAIN = Kind(
    "gossamer.run",
    {
        "": (RUN, "report.json", "report.html"),
        "dense": ("checkpoint.pt",),
        "sparse": ("checkpoint.pt",),
        "compact": ("compact.json",),
        "events": (),
        "events/dense": (),
        "events/sparse": (),
    },
    _of_training,
    "epochs",
)


def inspect(out: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool, kind: Kind = TRAIN) -> bool:
    """Raise unless this run may write to `out`, to its end; nothing is changed.

    Returns:
        Whether there is a run to continue.

    Raises:
        FileExistsError: `out` holds another run and neither resume nor overwrite was asked for, or it holds files
            that are no run at all.
        NotADirectoryError: `out` is no folder, or a place in it where a folder has to be is none.
        OSError: it cannot be made or written.
        ValueError: the run to resume has other settings, run.json is not ours, or a folder or pipe is where a file has
            to be written.
    """
    record = kind.record.find(out, "--out ")
    if record is None:
        files.check_target(out / RUN)
        return False
    if not resume and not overwrite:
        raise FileExistsError(f"--out {out} holds a run already; --resume continues it, --overwrite deletes it")
    if resume:
        differ(record["identity"], identity, f"--resume: {out}", longer=kind.longer)
    for name, written in kind.writes.items():
        place = out / name
        if os.path.lexists(place) and (not place.is_dir() or (name and place.is_symlink())):
            what = "a link" if place.is_symlink() else files.kind(place)
            raise NotADirectoryError(f"--out: {place} is {what}; expected a folder of the run, or nothing there")
        for file in written:
            if os.path.lexists(place / file) and not (place / file).is_file():
                raise ValueError(
                    f"--out: {place / file} is {files.kind(place / file)}; expected a file of the run, or nothing there"
                )
    return resume and record.get("clearing") is not True


def prepare(
    out: Path,
    identity: dict[str, Any],
    *,
    overwrite: bool,
    kind: Kind = TRAIN,
    settings: dict[str, Any] | None = None,
) -> None:
    """Make the folder, empty of an earlier run when overwriting, and write down which run it is, and its `settings`.

    run.json comes first and says "clearing" until the last file of the earlier run is gone, so that a run killed
    in between is still ours, and is cleared before anything of it would be continued.
    """
    out.mkdir(parents=True, exist_ok=True)
    clear = overwrite or (os.path.lexists(out / RUN) and kind.record.read(out).get("clearing") is True)
    if clear:
        kind.record.write(out, identity=identity, clearing=True)
    for path in list(_ours(out, kind, everything=clear)):
        path.unlink(missing_ok=True)
    if clear:
        for name in sorted(kind.writes, reverse=True):  # the inner ones first
            if name and (out / name).is_dir() and not os.listdir(out / name):
                (out / name).rmdir()
    kind.record.write(out, identity=identity, **({} if settings is None else {"settings": settings}))
    for name in kind.writes:  # some of them are written much later: a folder that takes none is found now
        if (out / name).is_dir():
            files.check_target(out / name / RUN)


def _ours(out: Path, kind: Kind, *, everything: bool) -> Iterator[Path]:
    """What earlier runs wrote into `out` except run.json itself; only drafts that they left unless `everything`."""
    for name, written in kind.writes.items():
        place = out / name
        if not place.is_dir() or (name and place.is_symlink()):
            continue
        for file in os.listdir(place):
            draft = files.draft_of(file)
            mine = (draft or file) in written or draft == RUN
            mine |= kind.further(name, draft or file)
            if mine and (draft or (everything and file != RUN)):
                yield place / file

"""Cost curves of one machine: what they are measured for, and the JSON file that keeps them.

    $GOSSAMER_CACHE (or ~/.cache/gossamer) / costs-amd-epyc-...-avx512-2-threads-1f0c9a33.json
    {"format": 4, "machine": {...}, "curves": [{"op": "matmul", "alternative": "(32, 1)", "shape": [...], ...}], ...}

The file's name and its `machine` are everything that the times depend on: the processor or GPU, the instruction set,
the threads, the versions and the build of the kernels. A file that says anything else is not used, and says why; so
is one whose checksum does not match, and a machine without a folder for it is one that was never tuned.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gossamer import files
from gossamer.measure import environment
from gossamer.planner.costs.curve import Curve

FORMAT = 4
LIMIT = 1 << 24  # bytes; a full tuning writes some 100 KB
_log = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Key:
    """What a curve is the cost of: one alternative of any op, at one shape, dtype and device.

    Of a planned product, with `shape` (rows, k, n): "matmul" with "dense" or a tile of the sparse operand as text, such
    as "(32, 1)"; "dense" with an engine of `gossamer.ops.dense`; "detect" with a tile; "copy" (making a transposed
    operand contiguous) with "".
    """

    op: str
    alternative: str
    shape: Shape
    dtype: str
    device: str = "cpu"


@dataclass
class Database:
    """The curves of one machine. `problem` says why a file was not used; None when there is nothing to say."""

    machine: dict[str, Any]
    curves: dict[Key, Curve] = field(default_factory=dict)
    measured: str | None = None
    problem: str | None = None
    prices: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what `costs` made of
    priced: dict[Key, Curve] = field(default_factory=dict, repr=False, compare=False)  # these curves

    def shapes(self, needed: Iterable[tuple[str, str]], dtype: str, device: str) -> list[Shape]:
        """The measured shapes for which every (op, alternative) needed has a curve."""
        needed = list(needed)
        shapes = dict.fromkeys(key.shape for key in self.curves if (key.dtype, key.device) == (dtype, device))
        return [s for s in shapes if all(Key(*pair, s, dtype, device) in self.curves for pair in needed)]

    def to_json(self) -> dict[str, Any]:
        curves = [{**asdict(key), **asdict(curve)} for key, curve in self.curves.items()]
        return files.sealed({"format": FORMAT, "machine": self.machine, "measured": self.measured, "curves": curves})

    @classmethod
    def from_json(cls, content: Any, machine: dict[str, Any]) -> Database:
        """Check everything and build; raises ValueError that says what is wrong."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"its format is {found!r}, expected {FORMAT}")
        files.check_seal(content)
        theirs = content.get("machine")
        if theirs != machine:
            differs = [k for k in machine if not isinstance(theirs, dict) or theirs.get(k) != machine[k]]
            found = {k: theirs.get(k) if isinstance(theirs, dict) else None for k in differs}
            raise ValueError(f"it was measured on another machine or version: {str(found)[:200]} instead of "
                             f"{ {k: machine[k] for k in differs} }")  # fmt: skip
        measured, curves = content.get("measured"), content.get("curves")
        if not isinstance(measured, str) or not isinstance(curves, list):
            raise ValueError("it lacks 'measured' or 'curves'")
        return cls(machine, dict(_curve(entry) for entry in curves), measured)

    def save(self, folder: Path | None = None) -> Path:
        """Write the file, in one step: a reader sees the old content or the new. Returns its path; OSError if not."""
        path = file_for(self.machine, folder)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(f"GOSSAMER_CACHE must name a folder, got the file {path.parent}") from error
        files.write_json(path, self.to_json())
        forget()
        return path

    def merge(self, other: Database) -> Database:
        """These curves, replaced by those of `other` where both have one."""
        if other.machine != self.machine:
            raise ValueError(f"other is of another machine: {other.machine}, expected {self.machine}")
        return Database(self.machine, {**self.curves, **other.curves}, other.measured or self.measured)


def _curve(entry: Any) -> tuple[Key, Curve]:
    try:
        key = Key(entry["op"], entry["alternative"], tuple(entry["shape"]), entry["dtype"], entry["device"])
        densities, seconds = entry["densities"], entry["seconds"]
        words = all(type(word) is str for word in (key.op, key.alternative, key.dtype, key.device))
        whole = all(type(n) is int and n >= 0 for n in key.shape)
        numbers = all(type(x) in (int, float) and math.isfinite(x) for x in (*densities, *seconds))
        if not (words and whole and numbers):
            raise ValueError("a field is of the wrong kind")
        return key, Curve(tuple(map(float, densities)), tuple(map(float, seconds)))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"the curve {str(entry)[:80]} is malformed: {error}") from None


@functools.cache
def _fixed() -> dict[str, Any]:
    """The parts of a machine that do not change while a process runs."""
    here = environment()
    versions = {name: here["versions"].get(name) for name in ("gossamer", "torch")}
    try:
        from gossamer import _native
    except ImportError:
        build = None
    else:
        build = hashlib.sha256(Path(str(_native.__file__)).read_bytes()).hexdigest()[:12]
    return {
        "cpu": here["cpu"],
        "model": None if here["family"] is None else f"{here['family']}/{here['model']}/{here['stepping']}",
        "gpu": here["gpu"],
        "triton": here["versions"].get("triton"),
        **versions,
        "build": build,
    }


def _isa() -> str | None:
    try:
        from gossamer import _native
    except ImportError:
        return None
    return str(_native.isa())


def machine_of(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Everything that times on this device depend on, as plain strings and numbers."""
    fixed = _fixed()
    versions = {"gossamer": fixed["gossamer"], "torch": fixed["torch"]}
    if torch.device(device).type == "cpu":
        return {
            "device": fixed["cpu"],
            "model": fixed["model"],
            "isa": _isa(),
            "threads": torch.get_num_threads(),
            "build": fixed["build"],
            **versions,
        }
    return {"device": fixed["gpu"], "triton": fixed["triton"], **versions}


def file_for(machine: dict[str, Any], folder: Path | None = None) -> Path:
    """Where the curves of a machine are kept."""
    words = [str(machine["device"]), str(machine.get("isa") or ""), f"{machine.get('threads', '')}"]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:60]
    digest = hashlib.sha256(text_of(machine).encode()).hexdigest()[:8]
    return (folder or files.cache_folder()) / f"costs-{slug}-{digest}.json"


def text_of(machine: dict[str, Any]) -> str:
    return json.dumps(machine, sort_keys=True)


def current(device: torch.device | str = "cpu") -> Database:
    """The curves of this machine as it is set now (threads, instruction set), read once; empty if never tuned."""
    return _current(torch.device(device).type, _isa(), torch.get_num_threads(), os.environ.get("GOSSAMER_CACHE"))


@functools.cache
def _current(device: str, isa: str | None, threads: int, folder: str | None) -> Database:
    machine = machine_of(device)
    try:
        path = file_for(machine)
    except FileNotFoundError:  # no home: a machine that was never tuned
        return Database(machine)
    return load(path, text_of(machine))


def forget() -> None:
    """Read the files again when they are next needed."""
    _current.cache_clear()
    load.cache_clear()


@functools.cache
def load(path: Path, machine_json: str) -> Database:
    """Read one file. Whatever is wrong with it becomes `problem`, is logged once, and the database is empty."""
    machine = json.loads(machine_json)
    try:
        return Database.from_json(files.parse_json(files.read(path, limit=LIMIT)), machine)
    except FileNotFoundError:
        return Database(machine)
    except (OSError, ValueError) as error:
        problem = f"{path} is not used: {error}; `gossamer tune` writes it anew"
        _log.warning(problem)
        return Database(machine, problem=problem)

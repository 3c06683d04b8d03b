"""The JSON of a saved compact model, read with suspicion: every field is what it should be, or one error names it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer import files

FORMAT, VERSION = "gossamer.compact", 1
RECORD = "compact.json"
LIMIT = 1 << 28  # bytes: 30 million kept positions
Positions = dict[str, dict[int, tuple[int, Tensor]]]  # tensor -> axis -> (size in the original, positions kept)


class StoreError(RuntimeError):
    """A saved model that cannot be read back."""


def is_weights(name: str) -> bool:
    """Whether a save gives such a name to its weights, after their hash."""
    return re.fullmatch(r"weights-[0-9a-f]{16}\.safetensors", name) is not None


def check_place(directory: Path) -> None:
    """Raise unless a compact model can be saved in `directory`: nothing is there, or a folder without another's record.

    One of ours that was damaged is replaced: saving again is what repairs it.

    Raises:
        NotADirectoryError: it is no folder. FileExistsError: its record is of something else, or of a newer version.
        ValueError, OSError: it cannot be written.
    """
    path = directory / RECORD
    if os.path.lexists(directory) and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is {files.kind(directory)}; expected a folder, or nothing there")
    files.check_target(path)
    if not os.path.lexists(path):
        return
    try:
        record = files.parse_json(files.read(path, limit=LIMIT))
    except (OSError, ValueError) as error:
        raise FileExistsError(
            f"{path} cannot be read ({error}), so it is not replaced; choose another folder"
        ) from None
    version = record.get("version") if isinstance(record, dict) and record.get("format") == FORMAT else None
    if type(version) is not int or version > VERSION:
        raise FileExistsError(
            f"{path} is not a compact model that this gossamer wrote, so it is not replaced; choose another folder"
        )


@dataclass(frozen=True)
class Record:
    """What was removed, which attributes changed, and which file has the weights."""

    model: str
    weights: str
    digest: str
    positions: Positions
    attributes: dict[str, dict[str, int | list[int]]]

    @classmethod
    def read(cls, directory: Path) -> Record:
        """Read and check `directory`'s record.

        Raises:
            StoreError: it is absent, no regular file, damaged, newer, or a field is not what it should be.
        """
        path = directory / RECORD
        try:
            record = files.parse_json(files.read(path, limit=LIMIT))
        except FileNotFoundError:
            raise StoreError(f"{path} does not exist: {directory} holds no saved compact model") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is not readable JSON: {error}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise StoreError(f"{path} is not a compact model (no format {FORMAT!r})")
        version = record.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise StoreError(f"{path} has version {version!r}, this gossamer reads up to {VERSION}: update gossamer")
        try:
            files.check_seal(record)
        except ValueError:
            raise StoreError(f"{path} is altered: its content does not match its hash") from None
        try:
            return cls._of(record)
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}") from None

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Record:
        weights = _dict(record, "weights", record)
        file, digest = weights.get("file"), weights.get("sha256")
        if not isinstance(file, str) or not isinstance(digest, str):
            raise ValueError("it does not name its weights")
        if not is_weights(file):
            raise ValueError(f"it names weights outside its folder or its scheme: {file!r}")
        positions: Positions = {}
        for name in _dict(record, "kept", record):
            axes = _dict(record["kept"], name, "kept")
            positions[name] = {_axis(axis): _kept(axes[axis], f"kept.{name}.{axis}") for axis in axes}
        attributes = {}
        for path in _dict(record, "attributes", record):
            values = _dict(record["attributes"], path, "attributes")
            attributes[path] = {name: _size(values[name], f"attributes.{path}.{name}") for name in values}
        return cls(str(record.get("model")), file, digest, positions, attributes)


def _dict(parent: dict[str, Any], key: str, where: Any) -> dict[str, Any]:
    value = parent.get(key)
    if not isinstance(value, dict):
        name = key if isinstance(where, dict) else f"{where}.{key}"
        raise ValueError(f"{name} is {_short(value)}, expected an object")
    return value


def _axis(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", text):
        raise ValueError(f"{_short(text)} is no number of an axis")
    return int(text)


def _kept(entry: Any, where: str) -> tuple[int, Tensor]:
    size = entry.get("of") if isinstance(entry, dict) else None
    found = entry.get("positions") if isinstance(entry, dict) else None
    if type(size) is not int or not isinstance(found, list) or any(type(item) is not int for item in found):
        raise ValueError(f"{where} is {_short(entry)}, expected its size and a list of positions")
    if not found or min(found) < 0 or max(found) >= size:
        raise ValueError(f"{where}: positions out of range [0, {_short(size)})")
    index = torch.tensor(found, dtype=torch.int64, device="cpu") if size < 2**63 else None
    if index is None or bool((index.diff() <= 0).any()):
        raise ValueError(f"{where}: positions do not increase")
    return size, index


def _size(value: Any, where: str) -> int | list[int]:
    items = value if isinstance(value, list) else [value]
    if not items or any(type(item) is not int or item < 1 for item in items):
        raise ValueError(f"{where} is {_short(value)}, expected a size or a list of sizes")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The parsed form of a data set in one .npz file beside it, taken only while it is of the same files.

A source file is the same if its size is, and its time of change; one that was copied or fetched anew (another time) is
the same if its checksum is. A time about as young as the cache says nothing: a file can be written twice within it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer import files
from gossamer.data.archive import read_arrays
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.dataset import DataSet, Part
from gossamer.xmc.data.folder import CACHE
from gossamer.xmc.data.formats.lines import shown
from gossamer.xmc.data.texts import Texts

logger = logging.getLogger(__name__)

VERSION = 1
_RECENT = 2_000_000_000  # nanoseconds: coarser than the clock of any file system


def read(folder: Path, sources: list[Path]) -> DataSet | None:
    """The data set, or None if there is no cache of these files; a damaged one is said in a warning."""
    path = folder / CACHE
    if not os.path.lexists(path):
        return None
    try:
        arrays = read_arrays(path)
        record = files.parse_json(arrays.pop("record").tobytes())
        if not isinstance(record, dict) or record.get("version") != VERSION:
            return None
        if not _same(record["sources"], folder, sources, path.stat().st_mtime_ns):
            return None
        return _unpacked(record, arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is no cache that can be read, and is made anew: %s", shown(path), error)
        return None


def write(folder: Path, sources: list[Path], data: DataSet) -> None:
    """Leave the cache; a folder that cannot be written is said in a warning."""
    path = folder / CACHE
    try:
        seen = [_seen(source, folder) for source in sources]
        arrays = _packed(data)
        record = {"version": VERSION, "sources": seen, "name": data.name, "facts": dict(data.facts)}
        for name in ("train", "test"):
            part = getattr(data, name)
            record[name] = {
                "labels": part.labels.shape,
                "features": None if part.features is None else part.features.shape,
            }
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        with files.replacing(path) as file:
            np.savez(file, record=text, **arrays)  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be written, so the next load parses again: %s", shown(path), error)


def _seen(source: Path, folder: Path) -> dict[str, Any]:
    status = source.stat()
    return {"name": os.path.relpath(source, folder), "size": status.st_size, "mtime": status.st_mtime_ns,
            "sha256": _checksum(source)}  # fmt: skip


def _checksum(source: Path) -> str:
    digest = hashlib.sha256()
    with files.open_file(source) as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _same(seen: list[dict[str, Any]], folder: Path, sources: list[Path], written: int) -> bool:
    if [entry["name"] for entry in seen] != [os.path.relpath(source, folder) for source in sources]:
        return False
    for entry, source in zip(seen, sources, strict=True):
        status = source.stat()
        if status.st_size != entry["size"]:
            return False
        known = status.st_mtime_ns == entry["mtime"] and status.st_mtime_ns < written - _RECENT
        if not known and _checksum(source) != entry["sha256"]:
            return False
    return True


def _packed(data: DataSet) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, part in (("train", data.train), ("test", data.test)):
        for what, matrix in (("labels", part.labels), ("features", part.features), ("exclude", part.exclude)):
            if matrix is not None:
                tensors = {"offsets": matrix.offsets, "indices": matrix.indices, "values": matrix.values}
                out |= {f"{name}.{what}.{key}": t.numpy() for key, t in tensors.items() if t is not None}
        if part.texts is not None:
            out |= {f"{name}.texts.content": part.texts.content, f"{name}.texts.offsets": part.texts.offsets}
    if data.label_texts is not None:
        out |= {"label_texts.content": data.label_texts.content, "label_texts.offsets": data.label_texts.offsets}
    return out


def _unpacked(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> DataSet:
    parts = []
    for name in ("train", "test"):
        shapes = record[name]
        labels = _csr(arrays, f"{name}.labels", shapes["labels"])
        if labels is None:
            raise ValueError(f"it lacks {name}.labels")
        features = _csr(arrays, f"{name}.features", shapes["features"])
        parts.append(
            Part(labels, features, _texts(arrays, f"{name}.texts"), _csr(arrays, f"{name}.exclude", labels.shape))
        )
    return DataSet(parts[0], parts[1], _texts(arrays, "label_texts"), str(record["name"]), dict(record["facts"]))


def _csr(arrays: dict[str, np.ndarray], name: str, shape: Any) -> Csr | None:
    if f"{name}.offsets" not in arrays:
        return None
    offsets, indices, values = (arrays.get(f"{name}.{key}") for key in ("offsets", "indices", "values"))
    if offsets is None or indices is None:
        raise ValueError(f"it lacks {name}.indices")
    # Arrays of an archive are read-only views of its bytes; tensors can be written to, so they get their own.
    numbers = None if values is None else torch.from_numpy(values.copy())
    rows, columns = (int(size) for size in shape)
    return Csr(torch.from_numpy(offsets.copy()), torch.from_numpy(indices.copy()), numbers, (rows, columns)).validate()


def _texts(arrays: dict[str, np.ndarray], name: str) -> Texts | None:
    if f"{name}.content" not in arrays:
        return None
    return Texts(arrays[f"{name}.content"], arrays[f"{name}.offsets"]).validate()

"""A classifier on disk: flat arrays that are opened where they lie, and a JSON header that says what they are.

    head.json                     format, version, settings, and of each array: file, dtype, shape, SHA-256; a checksum
    values-<token>.bin            its numbers, row-major, little-endian, nothing else; likewise the other arrays

The header names its files and is replaced last, in one rename, so a reader finds the old classifier or the new one.
Opening maps the files into memory: milliseconds, whatever their size, and only what is read comes from the disk. A part
of the rows can be opened alone. Several folders can hold shares of the rows; `shares.json` beside them then says which.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gossamer import files

HEADER, SHARES = "head.json", "shares.json"
FORMAT, VERSION = "gossamer.xmc", 1
LIMIT = 1 << 20  # bytes of a header
CHUNK = 1 << 24  # bytes hashed and written together
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.uint16, torch.int32, torch.int64, torch.uint8)
}
FOLDER = r"(share|part)-[0-9a-f]{12}-\d+"  # names of the folders of parts of a head
_NAME = re.compile(r"[a-z_]+-[0-9a-f]{12}\.bin")


class StoreError(ValueError):
    """A folder that holds no classifier, or a damaged, edited or newer one; the message names the file."""


@dataclass(frozen=True)
class Stored:
    """What a folder holds: plain settings, and the arrays by name."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


def save(
    directory: str | os.PathLike[str],
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    folders: Collection[str] = (),
) -> Path:
    """Write arrays and settings into a folder, whole or not at all; what an older save left there goes at the end.

    Args:
        directory: made if it is not there.
        folders: of parts or shares in it that belong to what is saved; others go too.
        settings: plain data that JSON can say.
        tensors: of dtypes float32, bfloat16, uint16, int32, int64 or uint8; names of lower-case letters and "_".

    Raises:
        TypeError, ValueError: naming the array. OSError: the disk is full or cannot be written.
        FileExistsError: the folder has a head.json or shares.json of something else. NotADirectoryError: it is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(folder, {"width": 8}, {"values": torch.arange(6.0).view(2, 3)})
    ...     found = load(folder)
    ...     found.settings, found.tensors["values"].tolist()
    ({'width': 8}, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    """
    _require_little_endian()
    for name, x in tensors.items():
        if not re.fullmatch(r"[a-z_]+", name):
            raise ValueError(f"names of arrays must be lower-case letters and '_', got {name!r}")
        if str(x.dtype).removeprefix("torch.") not in DTYPES:
            raise TypeError(f"{name} must have one of the dtypes {', '.join(DTYPES)}, got {x.dtype}")
    directory, token = Path(directory), secrets.token_hex(6)
    check_ours(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {}
    try:
        for name, x in tensors.items():
            arrays[name] = _write(directory / f"{name}-{token}.bin", x.detach().cpu().contiguous())
        record = {"format": FORMAT, "version": VERSION, "settings": dict(settings), "arrays": arrays}
        files.write_json(directory / HEADER, files.sealed(record))
    except BaseException:
        for name in tensors:
            (directory / f"{name}-{token}.bin").unlink(missing_ok=True)
        raise
    for old in directory.iterdir():
        draft = files.draft_of(old.name)
        if _NAME.fullmatch(draft or old.name) and not old.name.endswith(f"-{token}.bin"):
            old.unlink(missing_ok=True)
    (directory / SHARES).unlink(missing_ok=True)
    _remove_folders(directory, folders)
    return directory


def check_ours(root: Path) -> None:
    """Raise unless a head can be saved in `root` without replacing a header of something else."""
    if os.path.lexists(root) and not root.is_dir():
        raise NotADirectoryError(f"{root} is {files.kind(root)}; expected a folder, or nothing there")
    for name, kind in ((HEADER, FORMAT), (SHARES, f"{FORMAT}.shares")):
        path = root / name
        if not os.path.lexists(path):
            continue
        try:
            record = files.parse_json(files.read(path, limit=LIMIT))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or record.get("format") != kind:
            raise FileExistsError(f"{path} is no header of {kind}, so it is not replaced; choose another folder")


def _remove_folders(root: Path, kept: Collection[str]) -> None:
    """Delete the folders of parts and shares that an older save left, but for those that are `kept`."""
    for old in root.iterdir():
        if old.is_dir() and not old.is_symlink() and re.fullmatch(FOLDER, old.name) and old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, x: Tensor) -> dict[str, Any]:
    digest, content = hashlib.sha256(), bytes_of(x)
    with files.replacing(path) as file:
        for begin in range(0, len(content), CHUNK):
            part = content[begin : begin + CHUNK].numpy().data
            digest.update(part)
            file.write(part)
    kind = str(x.dtype).removeprefix("torch.")
    return {"file": path.name, "dtype": kind, "shape": list(x.shape), "sha256": digest.hexdigest()}


def bytes_of(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor as uint8[bytes]."""
    return x.view(-1).view(torch.uint8) if x.numel() else torch.empty(0, dtype=torch.uint8, device="cpu")


def load(directory: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False) -> Stored:
    """What `save` wrote: the header checked, and that every file is there and as long as it says.

    Args:
        mmap: map the files. Tensors may be written all the same: what is written stays in this process. The files must
            not be cut short while they are in use. False: read them.
        verify: also compare every byte with the checksums, which reads all.

    Raises:
        StoreError: something is missing, damaged, edited, or of a newer version.
    """
    _require_little_endian()
    path = Path(directory) / HEADER
    record = _header(path, FORMAT)
    settings, arrays = record.get("settings"), record.get("arrays")
    if not isinstance(settings, dict) or not isinstance(arrays, dict):
        raise StoreError(f"{path}: it has no settings or no arrays")
    tensors = {name: _load(path, name, entry, mmap, verify) for name, entry in arrays.items()}
    return Stored(settings, tensors)


def _header(path: Path, kind: str) -> dict[str, Any]:
    try:
        record = files.parse_json(files.read(path, limit=LIMIT))
        if not isinstance(record, dict) or record.get("format") != kind:
            raise ValueError(f"it is no header of {kind}")
        if record.get("version") != VERSION:
            raise ValueError(f"it has version {record.get('version')!r}; this gossamer reads {VERSION}")
        files.check_seal(record)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: nothing was saved there, or not wholly") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    return record


def _load(header: Path, name: str, entry: Any, mmap: bool, verify: bool) -> Tensor:
    try:
        file, dtype, shape, digest = entry["file"], DTYPES[entry["dtype"]], entry["shape"], entry["sha256"]
        right = bool(_NAME.fullmatch(file)) and all(type(size) is int and size >= 0 for size in shape)
    except (KeyError, TypeError):
        right = False
    if not right:
        raise StoreError(f"{header}: the entry of {name} is {entry!r}, expected file, dtype, shape and sha256")
    path, size = header.parent / file, prod(shape) * dtype.itemsize
    try:
        with files.open_file(path) as opened:
            found = os.fstat(opened.fileno()).st_size
            if found != size:
                what = f"expected {size} of {name}, {dtype}{shape}: it is cut short or not ours"
                raise StoreError(f"{path} has {found} bytes, {what}")
            if verify and _digest(opened) != digest:
                raise StoreError(f"{path} is damaged or was edited: its checksum does not match its content")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing, which {header.name} names") from None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, StoreError) else StoreError(f"{path}: {error}") from error
    if size == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return (mapped if mmap else mapped.clone()).view(dtype).view(shape)


def digest(path: Path) -> str:
    """SHA-256 of a file; OSError or ValueError where it cannot be read or is none."""
    with files.open_file(path) as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while part := file.read(CHUNK):
        digest.update(part)
    return digest.hexdigest()


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise RuntimeError("classifiers are stored in little-endian order, which this machine does not have")


# ---------------------------------------------------------------------------------------------- shares of the rows


def write_shares(directory: str | os.PathLike[str], folders: list[str], bounds: list[int]) -> None:
    """Say that the folders, in `directory`, hold the labels [bounds[i], bounds[i + 1]); others there are removed."""
    root = Path(directory)
    check_ours(root)
    record = {"format": f"{FORMAT}.shares", "version": VERSION, "folders": folders, "bounds": bounds}
    files.write_json(root / SHARES, files.sealed(record))
    _remove_folders(root, folders)


def load_shares(
    directory: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
) -> list[tuple[int, int, Stored]]:
    """(begin, end, what is stored) of each share in `directory`, in order of labels; a folder without shares is one.

    Raises:
        StoreError: as `load`, or shares that do not follow one another.
    """
    root = Path(directory)
    if not (root / SHARES).exists():
        whole = load(root, mmap=mmap, verify=verify)
        return [(0, _labels(root, whole), whole)]
    record = _header(root / SHARES, f"{FORMAT}.shares")
    folders, bounds = record.get("folders"), record.get("bounds")
    if not isinstance(folders, list) or not isinstance(bounds, list) or len(bounds) != len(folders) + 1:
        raise StoreError(f"{root / SHARES}: expected folders and one more bounds, got {folders} and {bounds}")
    shares = []
    for begin, end, folder in zip(bounds[:-1], bounds[1:], folders, strict=True):
        if not isinstance(folder, str) or not re.fullmatch(FOLDER, folder):
            raise StoreError(f"{root / SHARES}: folders are named share-<token>-<number>, got {folder!r}")
        share = load(root / folder, mmap=mmap, verify=verify)
        if _labels(root / folder, share) != end - begin:
            raise StoreError(f"{root / folder} has {_labels(root / folder, share)} labels, {SHARES} says {end - begin}")
        shares.append((begin, end, share))
    return shares


def _labels(path: Path, stored: Stored) -> int:
    values = stored.tensors.get("values")
    if values is None or values.dim() != 2:
        raise StoreError(f"{path / HEADER}: it has no values[labels, fan_in]")
    return values.shape[0]

"""Plain arrays from a numpy .npz file, within the memory that they take.

A few bytes can claim any size, in an array's header and in the archive's table, and deflate can make good on a
thousandfold. Nothing is allocated before the claims agree with each other and with the size of the file.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from gossamer import files

SMALL = 1 << 26  # bytes that an archive may unpack to, however small it is itself
RATIO = 200  # times its own size that a larger one may; real numbers hardly shrink tenfold


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, never unpickled.

    Args:
        names: those to read; None for all.

    Raises:
        ValueError: it is no file, cannot be read, claims more than it can hold, holds Python objects or a name twice.
    """
    try:
        with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return _arrays(archive, os.fstat(file.fileno()).st_size, names)
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        RuntimeError,
        SyntaxError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz file that `read_arrays` has read.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _arrays(archive: zipfile.ZipFile, size: int, names: Collection[str] | None) -> dict[str, np.ndarray]:
    members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    wanted = {name: info for name, info in members if names is None or name in names}
    if len(wanted) < sum(names is None or name in names for name, _ in members):
        raise ValueError(f"it holds an array twice: {[name for name, _ in members]}")
    odd = [
        name for name, info in wanted.items() if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    if odd:
        raise ValueError(f"{odd} are compressed in a way that numpy does not write")
    packed = sum(info.compress_size for info in wanted.values())
    unpacked = sum(info.file_size for info in wanted.values())
    if packed > size or unpacked > max(SMALL, RATIO * size):
        raise ValueError(f"its {size} bytes claim to hold {unpacked}; np.savez writes such arrays uncompressed")
    out = {}
    for name, info in wanted.items():
        with archive.open(info) as member:
            out[name] = _array(member, name, info.file_size)
    return out


def _array(member: IO[bytes], name: str, size: int) -> np.ndarray:
    """One array; its header is compared with the `size` of the member before there is room made for it."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has npy format {version}, which numpy does not use for numbers")
    shape, fortran, dtype = readers[version](member)
    if dtype.hasobject:  # they run code when they are read
        raise ValueError(f"{name} holds Python objects")
    claimed, present = math.prod(shape) * dtype.itemsize, size - member.tell()
    if min(shape, default=0) < 0 or claimed != present:
        raise ValueError(f"{name} claims {claimed} bytes, shape {shape} of {dtype}, and has {present}")
    if not dtype.itemsize:
        return np.empty(0, dtype)
    content = member.read(claimed + 1)  # to the end, where the archive's checksum is compared
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")

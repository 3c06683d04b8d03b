"""Arrays from a numpy .npz file: `x` and `y`, and `x_test` and `y_test` where the split is given.

A few bytes can claim any size, in an array's header and in the archive's table, and deflate can make good on a
thousandfold. Nothing is allocated before the claims agree with each other and with the size of the file.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch

from gossamer import files
from gossamer.data.splits import Splits, normalise, split

_NAMES = ("x", "y", "x_test", "y_test")
SMALL = 1 << 26  # bytes that an archive may unpack to, however small it is itself
RATIO = 200  # times its own size that a larger one may; real numbers hardly shrink tenfold


# Fewer examples than this may name more classes than they are: a few of ImageNet's with its numbers, say.
CLASSES = 1 << 15
_NUMBERED = (
    "labels number the classes from 0, and each has an output of the network; identifiers become numbers by "
    "np.unique(y, return_inverse=True)[1]"
)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"npz: there is no file {path}")
    try:
        with files.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return _arrays(archive, path.stat().st_size)
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
        raise ValueError(f"npz: {path} is not a readable .npz file of plain arrays: {error}") from error


def _arrays(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    members = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    wanted = {name: info for name, info in members if name in _NAMES}
    if len(wanted) < sum(name in _NAMES for name, _ in members):
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


def _inputs(array: np.ndarray, name: str, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"npz: {name} in {path} has dtype {array.dtype}; expected numbers")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim not in (2, 4) or 0 in array.shape:
        raise ValueError(
            f"npz: {name} in {path} has shape {array.shape}; expected [n, features], [n, height, width] or "
            "[n, channels, height, width], none of them 0"
        )
    with np.errstate(over="ignore"):  # what is beyond float32 is said below
        x = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not torch.isfinite(x).all():
        raise ValueError(f"npz: {name} in {path} holds values that are not finite")
    return x


def _labels(array: np.ndarray, name: str, examples: int, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise ValueError(f"npz: {name} in {path} has dtype {array.dtype}; expected integer class labels")
    if array.shape != (examples,):
        raise ValueError(f"npz: {name} in {path} has shape {array.shape}; expected ({examples},), one label an example")
    if array.min() < 0:
        raise ValueError(f"npz: {name} in {path} has the label {array.min()}; expected labels from 0")
    if array.max() >= 1 << 31:
        raise ValueError(f"npz: {name} in {path} has the label {array.max()}; {_NUMBERED}")
    return torch.from_numpy(array.astype(np.int64))


def npz(path: str, *, seed: int, test_fraction: float = 0.2) -> Splits:
    """Inputs of any channels x height x width, or feature vectors; classes are 0..max(y).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or claims more than it can hold, an array is missing, or has the wrong
            dtype, shape or labels.
    """
    file = Path(os.path.expanduser(path))
    arrays = _read(file)
    if "x" not in arrays or "y" not in arrays or ("x_test" in arrays) != ("y_test" in arrays):
        raise ValueError(
            f"npz: {file} holds the arrays {sorted(arrays)}; expected x and y, and both or none of x_test and y_test"
        )
    x = _inputs(arrays["x"], "x", file)
    y = _labels(arrays["y"], "y", len(x), file)
    if "x_test" in arrays:
        test_x = _inputs(arrays["x_test"], "x_test", file)
        test_y = _labels(arrays["y_test"], "y_test", len(test_x), file)
        if test_x.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"npz: x_test in {file} has examples of {tuple(test_x.shape[1:])}, x of {tuple(x.shape[1:])}"
            )
        train_x, train_y = x, y
    else:
        train, test = split(y, test_fraction=test_fraction, seed=seed)
        train_x, train_y, test_x, test_y = x[train], y[train], x[test], y[test]
    classes = int(max(y.max(), test_y.max())) + 1
    if classes < 2:
        raise ValueError(f"npz: every label in {file} is 0; expected at least two classes")
    if classes > max(CLASSES, len(train_y) + len(test_y)):
        raise ValueError(f"npz: the labels in {file} go up to {classes - 1}; {_NUMBERED}")
    train_x, test_x = normalise(train_x, test_x)
    return Splits(train_x, train_y, test_x, test_y, classes, tuple(str(i) for i in range(classes)))

"""Arrays from a numpy .npz file: `x` and `y`, and `x_test` and `y_test` where the split is given."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from gossamer import files
from gossamer.data.archive import array_names, read_arrays
from gossamer.data.digest import digest
from gossamer.data.splits import Splits, normalise, split

logger = logging.getLogger(__name__)

_NAMES = ("x", "y", "x_test", "y_test")

# Fewer examples than this may name more classes than they are: a few of ImageNet's with its numbers, say.
CLASSES = 1 << 15
_NUMBERED = (
    "labels number the classes from 0, and each has an output of the network; identifiers become numbers by "
    "np.unique(y, return_inverse=True)[1]"
)


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
    if array.ndim == 4 and array.shape[1] == array.shape[2] > 4 and array.shape[3] in (1, 3, 4):
        logger.warning(
            "npz: %s in %s has shape %s, read as %d channels of %d by %d; images with their channels last become "
            "[n, channels, height, width] by %s.transpose(0, 3, 1, 2)", name, path, array.shape, *array.shape[1:], name,
        )  # fmt: skip
    with np.errstate(over="ignore"):  # what is beyond float32 is said below
        x = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not torch.isfinite(x).all():
        raise ValueError(f"npz: {name} in {path} holds values that are not finite")
    return x


def _labels(array: np.ndarray, name: str, examples: int, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu" or array.shape != (examples,):
        what = f"npz: {name} in {path} has dtype {array.dtype} and shape {array.shape}; expected integer class labels"
        raise ValueError(f"{what}, shape ({examples},), one label an example{_made(array, name, examples)}")
    if array.min() < 0:
        raise ValueError(f"npz: {name} in {path} has the label {array.min()}; {_NUMBERED}")
    if array.max() >= 1 << 31:
        raise ValueError(f"npz: {name} in {path} has the label {array.max()}; {_NUMBERED}")
    return torch.from_numpy(array.astype(np.int64))


def _made(array: np.ndarray, name: str, examples: int) -> str:
    """How such an array becomes labels, where that can be told."""
    if array.dtype.kind in "USO":
        return f"; names become numbers by np.unique({name}, return_inverse=True)[1]"
    if array.ndim == 2 and array.shape[0] == examples and array.shape[1] > 1:
        return f"; a column for each class becomes labels by {name}.argmax(1)"
    if array.size == examples and array.ndim > 1:
        return f"; {name}.ravel() has it"
    if array.dtype.kind in "fb" and array.shape == (examples,):
        return f"; {name}.astype(int) makes them so, if they number the classes from 0"
    return ""


def _lacking(file: Path) -> str:
    """What an archive without x and y holds, and how to write one with them."""
    names = array_names(file)
    said = f"npz: {file} holds the arrays {names}; expected x and y, and both or none of x_test and y_test"
    lower = {name.lower(): name for name in names}
    if {"x", "y"} <= lower.keys():
        return f"{said}, in small letters: np.savez({file.name!r}, x={lower['x']}, y={lower['y']})"
    if len(names) == 2:
        return f"{said}: np.savez({file.name!r}, x=..., y=...)"
    return said


def npz(path: str, *, seed: int, test_fraction: float = 0.2) -> Splits:
    """Inputs of any channels x height x width, or feature vectors; classes are 0..max(y).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or claims more than it can hold, an array is missing, or has the wrong
            dtype, shape or labels.
    """
    file = Path(os.path.expanduser(path))
    if not file.exists():
        raise FileNotFoundError(f"npz: there is no file {file}")
    if file.is_file() and files.begins(file, b"\x93NUMPY"):
        raise ValueError(
            f"npz: {file} is one array (.npy); expected an archive of x and y: np.savez('data.npz', x=..., y=...)"
        )
    try:
        arrays = read_arrays(file, _NAMES)
    except ValueError as error:
        raise ValueError(f"npz: {error}") from error
    if "x" not in arrays or "y" not in arrays or ("x_test" in arrays) != ("y_test" in arrays):
        raise ValueError(_lacking(file))
    x = _inputs(arrays["x"], "x", file)
    y = _labels(arrays["y"], "y", len(x), file)
    read = {"x": x, "y": y}
    if "x_test" in arrays:
        test_x = _inputs(arrays["x_test"], "x_test", file)
        test_y = _labels(arrays["y_test"], "y_test", len(test_x), file)
        if test_x.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"npz: x_test in {file} has examples of {tuple(test_x.shape[1:])}, x of {tuple(x.shape[1:])}"
            )
        train_x, train_y = x, y
        read |= {"x_test": test_x, "y_test": test_y}
    else:
        train, test = split(y, test_fraction=test_fraction, seed=seed)
        train_x, train_y, test_x, test_y = x[train], y[train], x[test], y[test]
    classes = int(max(y.max(), test_y.max())) + 1
    if classes < 2:
        raise ValueError(f"npz: every label in {file} is 0; expected at least two classes")
    if classes > max(CLASSES, len(train_y) + len(test_y)):
        raise ValueError(f"npz: the labels in {file} go up to {classes - 1}; {_NUMBERED}")
    train_x, test_x = normalise(train_x, test_x)
    names = tuple(str(i) for i in range(classes))
    data = Splits(train_x, train_y, test_x, test_y, classes, names, digest(read))
    if data.unseen is not None:  # the labels may not be what they were meant to be
        logger.warning("npz: %s: %s; %s", file, data.unseen, _NUMBERED)
    return data

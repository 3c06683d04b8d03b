"""Arrays from a numpy .npz file: `x` and `y`, and `x_test` and `y_test` where the split is given."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from gossamer.data.archive import read_arrays
from gossamer.data.splits import Splits, normalise, split

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
    if not file.exists():
        raise FileNotFoundError(f"npz: there is no file {file}")
    try:
        arrays = read_arrays(file, _NAMES)
    except ValueError as error:
        raise ValueError(f"npz: {error}") from error
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

"""Sparse matrices as scipy.sparse.save_npz writes them (PECOS's `X.trn.npz`), read without scipy, never unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gossamer import files
from gossamer.data.archive import read_arrays
from gossamer.xmc.data.csr import Csr, index_type
from gossamer.xmc.data.formats.lines import refuse
from gossamer.xmc.data.formats.rows import MOST_COLUMNS, Builder, Rows

_UNNAMED = 1 << 22
_NAMES = ("format", "shape", "data", "indices", "indptr")


def read_npz(path: Path, *, values: bool) -> Csr:
    """A matrix in csr or csc format. Without `values` (label sets) an entry is there unless it is 0.

    Raises:
        Malformed: it is no such file, its arrays do not agree, or a value is no finite number.
        FileNotFoundError: there is no file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = read_arrays(path, _NAMES)
    except ValueError as error:
        refuse(path, None, str(error))
    missing = sorted(set(_NAMES) - set(arrays))
    if missing:
        refuse(path, None, f"it lacks {missing}; expected a file of scipy.sparse.save_npz in csr or csc format")
    kind, shape = _format(arrays["format"], path), _shape(arrays["shape"], path)
    major, minor = shape if kind == "csr" else shape[::-1]
    pointers, ids, data = (arrays[name] for name in ("indptr", "indices", "data"))
    for name in ("indptr", "indices"):
        if arrays[name].dtype.kind not in "iu" or arrays[name].ndim != 1:
            refuse(path, None, f"its {name} is {arrays[name].dtype}{list(arrays[name].shape)}; expected integers")
    if data.dtype.kind not in "fiub" or data.shape != ids.shape:
        refuse(path, None, f"its data is {data.dtype}{list(data.shape)}; expected {len(ids)} numbers")
    pointers = pointers.astype(np.int64)
    if len(pointers) != major + 1 or pointers[0] != 0 or pointers[-1] != len(ids) or (np.diff(pointers) < 0).any():
        refuse(
            path, None, f"its indptr does not rise from 0 to {len(ids)} in {major + 1} steps, as the shape {shape} asks"
        )
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < minor:
        refuse(path, None, f"its indices go from {ids.min()} to {ids.max()}; expected 0 to {minor - 1}")
    return _rows(np.diff(pointers).astype(np.int64), ids.astype(np.int64), data, shape, path, values, kind)


def _rows(
    counts: np.ndarray, ids: np.ndarray, data: np.ndarray, shape: tuple[int, int], path: Path, values: bool, kind: str
) -> Csr:
    with np.errstate(over="ignore"):  # what is beyond float32 is refused by the builder
        numbers = data.astype(np.float32)
    if kind == "csc":
        if shape[0] > _UNNAMED + 64 * len(ids):  # rows take room, and in this format nothing in the file shows them
            refuse(path, None, f"its shape claims {shape[0]} rows, but it has {len(ids)} entries")
        columns = np.repeat(np.arange(shape[1]), counts)
        order = np.argsort(ids, kind="stable")
        counts, ids, numbers = np.bincount(ids, minlength=shape[0]), columns[order], numbers[order]
    if not values:
        if not np.isfinite(numbers).all():
            refuse(path, None, "it has a value that is not finite")
        kept = numbers != 0
        row = np.repeat(np.arange(shape[0]), counts)[kept]
        counts, ids = np.bincount(row, minlength=shape[0]), ids[kept]
    builder = Builder(path, shape[1], values=values)
    builder.add(Rows(counts.astype(np.int64), ids, numbers if values else None))
    return builder.finish()


def _format(array: np.ndarray, path: Path) -> str:
    text = array.item() if array.shape == () else None
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if text not in ("csr", "csc"):
        refuse(path, None, f"its format is {text!r:.100}; expected csr or csc")
    return text


def _shape(array: np.ndarray, path: Path) -> tuple[int, int]:
    if array.dtype.kind not in "iu" or array.shape != (2,) or array.min() < 0 or array.max() > MOST_COLUMNS:
        refuse(path, None, f"its shape is {array!r:.100}; expected two numbers from 0 to {MOST_COLUMNS}")
    return int(array[0]), int(array[1])


def write_npz(path: Path, matrix: Csr) -> None:
    """What scipy.sparse.load_npz reads; label sets get the value 1."""
    values = torch.ones(matrix.nnz, dtype=torch.float32, device="cpu") if matrix.values is None else matrix.values
    offsets = matrix.offsets.to(torch.int32 if index_type(matrix.nnz + 1) == torch.int32 else torch.int64)
    with files.replacing(path) as file:
        np.savez_compressed(
            file, format=np.array(b"csr"), shape=np.array(matrix.shape, np.int64), data=values.numpy(),
            indices=matrix.indices.numpy(), indptr=offsets.numpy(),
        )  # fmt: skip

"""What data was read, in one number: a run that goes on compares it, for a path says nothing of what lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch


def digest(arrays: Mapping[str, np.ndarray | torch.Tensor | None]) -> str:
    """SHA-256 of arrays: their names, dtypes, shapes and bytes, in this order. It takes about a second a gigabyte.

    >>> from gossamer.data.digest import digest
    >>> digest({"x": np.arange(3), "y": None}) == digest({"x": torch.arange(3), "y": None})
    True
    >>> digest({"x": np.arange(3)}) == digest({"x": np.arange(3).reshape(3, 1)})
    False
    """
    total = hashlib.sha256()
    for name, array in arrays.items():
        if array is None:
            total.update(f"{name} none\n".encode())
            continue
        plain = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array)
        total.update(f"{name} {plain.dtype.str} {list(plain.shape)}\n".encode())
        if plain.size:
            total.update(plain.data.cast("B"))
    return total.hexdigest()

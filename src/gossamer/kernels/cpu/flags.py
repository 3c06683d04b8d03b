"""One bit for each element of a few bands of rows: is it nonzero? The first half of `detect`, for samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def flags(x: Tensor, starts: Sequence[int], height: int) -> Tensor:
    """x[rows, cols] -> int64[bands, height, ceil(cols / 64)]: rows `start` to `start + height` of x for each start.

    Bit c % 64 of word c // 64 is set if the element in column c is not zero (-0.0 is, NaN is not).
    """
    _call.tensor(x, "x", ndim=2, dtypes=_call.FLOATS + _call.INTEGERS)
    rows, cols = x.shape
    if height < 1 or not all(0 <= start <= rows - height for start in starts):
        raise ValueError(f"starts must name bands of {height} rows within {rows} rows, got {list(starts)}")
    words = -(-cols // 64)
    # Behind its bits detect keeps a count for each row: those of a band lie where the next one's bits will be.
    bits = torch.empty(len(starts) * height * words + height, dtype=torch.int64, device="cpu")
    offsets = torch.empty(height + 1, dtype=torch.int64, device="cpu")
    of_x, of_bits, of_offsets, size, is_float = (
        x.data_ptr(), bits.data_ptr(), offsets.data_ptr(), x.itemsize, x.dtype in _call.FLOATS,
    )  # fmt: skip
    for i, start in enumerate(starts):
        to = of_bits + i * height * words * 8
        # No room for indices, so none are written: only the flags that they would be made from. One thread, because
        # a band is so small that waking another takes as long.
        _call.native.detect(
            of_x + start * cols * size, height, cols, size, is_float, 1, 1, 0, to, of_offsets, to,
            _call.index_dtype(cols).itemsize, True, 1,
        )  # fmt: skip
    return bits[: len(starts) * height * words].view(len(starts), height, words)

"""A linear layer of few rows, whose weight is read once as it lies (csrc/few_rows.cc)."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
FLOATS = tuple(_TYPES)


def few_rows(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return `y[B, K]`; see `gossamer.kernels.reference.few_rows`. x, w and bias have one dtype, of `FLOATS`.

    Sums of half types are float32. A row of y has the same bits whatever the other rows of x, on any number of threads.
    """
    _call.tensor(x, "x", ndim=2, dtypes=FLOATS)
    _call.tensor(w, "w", ndim=2, dtypes=(x.dtype,))
    (rows, inner), (outputs, columns) = x.shape, w.shape
    if columns != inner:
        raise ValueError(f"w must have {inner} columns like x has, got shape {tuple(w.shape)}")
    if bias is not None:
        _call.bias(bias, outputs, (x.dtype,))
    wide, addend = x, bias
    if x.itemsize == 2:
        wide, addend = x.float(), None if bias is None else bias.float()
    y = torch.empty((rows, outputs), dtype=wide.dtype, device="cpu")
    _call.native.few_rows(
        wide.data_ptr(), rows, inner, w.data_ptr(), _TYPES[w.dtype], outputs, _call.address(addend), y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype)

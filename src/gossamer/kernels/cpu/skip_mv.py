"""Few rows times a matrix of weights of which only the rows that are needed are read (csrc/skip_mv.cc, gated_mv.cc)."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call, memory

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLOATS = tuple(_TYPES)


def skip_mv(x: Tensor, w: Tensor, bias: Tensor | None, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return `(y[B, K], int64[1])`; see `gossamer.kernels.reference.skip_mv`.

    x and w are float32, bfloat16 or float16, each by itself; sums are float32, in order of the rows of w. A row of y
    has the same bits whatever the other rows of x, on any number of threads.
    """
    (batch, inner), (rows, columns) = _operands(x, w)
    if rows != inner:
        raise ValueError(f"w must have {inner} rows like x has columns, got shape {tuple(w.shape)}")
    threshold = float(threshold)
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    addend = _bias(bias, columns)
    wide = x.float()
    y = memory.empty((batch, columns), torch.float32)
    counts = torch.empty(1, dtype=torch.int64, device="cpu")
    workspace = torch.empty(_call.native.skip_mv_workspace(inner), dtype=torch.uint8, device="cpu")
    _call.native.skip_mv(
        wide.data_ptr(), batch, inner, w.data_ptr(), _TYPES[w.dtype], columns,
        _call.address(addend), threshold, y.data_ptr(), counts.data_ptr(), workspace.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype), counts


def gated_mv(x: Tensor, w: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """Return `y[B, K]`; see `gossamer.kernels.reference.gated_mv`. float32, bfloat16 or float16; sums are float32."""
    (batch, inner), (rows, columns) = _operands(x, w)
    if columns != inner:
        raise ValueError(f"w must have {inner} columns like x has, got shape {tuple(w.shape)}")
    _call.tensor(gate, "gate", ndim=2, dtypes=FLOATS)
    if tuple(gate.shape) != (batch, rows):
        raise ValueError(f"gate must have shape {(batch, rows)}, a row for each of x, got {tuple(gate.shape)}")
    addend = _bias(bias, rows)
    wide, gates = x.float(), gate.float()
    y = memory.empty((batch, rows), torch.float32)
    workspace = torch.empty(_call.native.gated_mv_workspace(rows), dtype=torch.uint8, device="cpu")
    _call.native.gated_mv(
        wide.data_ptr(), batch, inner, w.data_ptr(), _TYPES[w.dtype], rows,
        _call.address(addend), gates.data_ptr(), y.data_ptr(), workspace.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype)


def _operands(x: Tensor, w: Tensor) -> tuple[torch.Size, torch.Size]:
    _call.tensor(x, "x", ndim=2, dtypes=FLOATS)
    _call.tensor(w, "w", ndim=2, dtypes=FLOATS)
    return x.shape, w.shape


def _bias(bias: Tensor | None, size: int) -> Tensor | None:
    if bias is None:
        return None
    _call.bias(bias, size, FLOATS)
    return bias.float()

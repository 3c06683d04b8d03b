"""scatter: tiles back to their places in a matrix that is zero elsewhere (PIT's SWrite).

dense[row(s) * bm + i, indices[s] * bn + j] = values[s, i, j]
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._index import check_pattern
from gossamer.ops._register import Backend, check_backend, check_transforms
from gossamer.ops._tiles import Scatter, check_operand, scatter_on
from gossamer.pattern import Pattern


def scatter(values: Tensor, pattern: Pattern, *, backend: Backend | None = None) -> Tensor:
    """Write tiles to their places. Differentiable to any order; the backward is `gather`.

    Args:
        values: [capacity, bm, bn] on the pattern's device, any real dtype of 1, 2, 4 or 8 bytes. What slack slots
            and the padding of ragged tiles hold does not matter.
        pattern: where the tiles go; read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of the values' device; "cpu", "triton" or "reference" to insist.

    Returns:
        dense [rows, cols], contiguous; absent tiles are zero.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.eye(2).bool())
    >>> scatter(torch.tensor([[[1.0]], [[4.0]]]), pattern, backend="reference")
    tensor([[1., 0.],
            [0., 4.]])
    """
    check_pattern(pattern)
    expected = (pattern.capacity, *pattern.tile)
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {type(values).__name__}")
    if tuple(values.shape) != expected:
        raise ValueError(f"values must have shape [capacity, bm, bn] = {expected}, got {tuple(values.shape)}")
    check_operand("values", values, pattern)
    check_backend(backend, "values", values)
    check_transforms("gossamer.ops.scatter", values)
    args = (values, pattern.row_offsets(), pattern.indices.reshape(-1), *pattern.shape)
    if values.requires_grad and torch.is_grad_enabled():
        return Scatter.apply(*args, backend)
    return scatter_on(backend)(*args)

"""gather: the values of a pattern's tiles (PIT's SRead).

values[s, i, j] = x[row(s) * bm + i, indices[s] * bn + j]
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._index import check_pattern
from gossamer.ops._register import Backend, check_backend, check_transforms
from gossamer.ops._tiles import Gather, check_operand, gather_on
from gossamer.pattern import Pattern
from gossamer.pattern.check import check_matrix


def gather(x: Tensor, pattern: Pattern, *, backend: Backend | None = None) -> Tensor:
    """Copy the present tiles of x, in slot order. Differentiable to any order; the backward is `scatter`.

    Args:
        x: [rows, cols] of the pattern's shape and device, any real dtype of 1, 2, 4 or 8 bytes. A batch is
            `x.flatten(0, 1)` with the pattern of the flattened matrix.
        pattern: the tiles to copy; read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        values [capacity, bm, bn], contiguous; slack slots and the padding of ragged tiles are zero.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.eye(2).bool())
    >>> gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), pattern, backend="reference").flatten()
    tensor([1., 4.])
    """
    check_matrix("x", x)
    check_pattern(pattern)
    if tuple(x.shape) != tuple(pattern.shape):
        raise ValueError(f"x must have the pattern's shape {tuple(pattern.shape)}, got {tuple(x.shape)}")
    check_operand("x", x, pattern)
    check_backend(backend, "x", x)
    check_transforms("gossamer.ops.gather", x)
    args = (x, pattern.row_offsets(), pattern.indices.reshape(-1), *pattern.tile)
    if x.requires_grad and torch.is_grad_enabled():
        return Gather.apply(*args, backend)
    return gather_on(backend)(*args)

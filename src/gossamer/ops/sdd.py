"""sdd: a dense product, sampled.

values[s] = a[rows of tile s, :] @ b[:, columns of tile s]
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._arguments import check_factor, check_transposed
from gossamer.ops._index import check_pattern
from gossamer.ops._products import Sdd, index_of, sdd_on
from gossamer.ops._register import Backend, check_backend, check_transforms
from gossamer.ops.transpose import Transposed
from gossamer.pattern import Pattern


def sdd(
    a: Tensor,
    b: Tensor,
    pattern: Pattern,
    *,
    transposed: Transposed | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """The tiles of a @ b that a pattern names, and no others are computed. Differentiable to any order.

    Args:
        a: [m, k], float64, float32, bfloat16 or float16, row-major or a transposed view; neither is copied.
        b: [k, n] of a's dtype, likewise.
        pattern: (m, n), the tiles to compute; read at face value on a GPU; see
            `pattern.validate()`.
        transposed: `gossamer.ops.transpose(pattern)`, for the gradient of b; made when needed if None.
        backend: None for the kernels of a's device; "cpu", "triton" or "reference" to insist.

    Returns:
        values [capacity, bm, bn] in a's dtype, contiguous; slack slots and the padding of ragged tiles are zero. Sums
        run in float32 (float64 for float64), do not depend on the number of threads, and are rounded once, as in `dsd`;
        a CPU's kernel reads half operands widened for the call. Gradients: a gets `dsd(dvalues, b.t())`, b gets
        `dds(a.t(), dvalues)`.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.eye(2).bool())
    >>> sdd(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]), pattern, backend="reference").flatten()
    tensor([3., 8.])
    """
    check_pattern(pattern)
    check_factor("a", a, pattern.device)
    check_factor("b", b, pattern.device)
    if a.dtype != b.dtype:
        raise TypeError(f"b must have a's dtype {a.dtype}, got {b.dtype}")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"b must have {a.shape[1]} rows, a's columns, got shape {tuple(b.shape)}")
    if (a.shape[0], b.shape[1]) != tuple(pattern.shape):
        raise ValueError(f"pattern must have the product's shape {(a.shape[0], b.shape[1])}, got {pattern.shape}")
    check_transposed(transposed, pattern)
    check_backend(backend, "a", a)
    check_transforms("gossamer.ops.sdd", a, b)
    index = index_of(pattern, transposed, None)
    if (a.requires_grad or b.requires_grad) and torch.is_grad_enabled():
        return Sdd.apply(a, b, *pattern.tile, backend, *index)
    return sdd_on(backend)(a, b, *index[:2], *pattern.tile)

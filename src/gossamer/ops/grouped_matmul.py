"""grouped_matmul: every row with the matrix of its group; mixture of experts without capacity, padding or drops.

y[t, j] = x[t] @ weights[expert_ids[t, j]]          zero where the id is negative
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._arguments import FLOATS
from gossamer.ops._grouped import GroupedMm, mm
from gossamer.ops._index import check_pattern
from gossamer.ops._register import Backend, check_backend, check_transforms
from gossamer.pattern import Pattern
from gossamer.pattern.build import route
from gossamer.pattern.check import check_matrix, is_recording


def grouped_matmul(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    *,
    index: Pattern | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Each row of x times the weights of each of its experts. Differentiable in x and weights, to any order.

    Rows are read where they lie and results are stored where they belong: nothing is padded, no token is dropped
    whatever the skew, and nothing waits for the device.

    Args:
        x: [T, k], float64, float32, bfloat16 or float16, contiguous (else copied).
        weights: [E, k, n] of x's dtype, contiguous (else copied).
        expert_ids: integers [T], or [T, j] for j experts a row; each below E; a negative id gives a row of zeros.
        index: `Pattern.from_ids(expert_ids.flatten(), E)` if you have it: products with the same routing share it.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        [T, n], or [T, j, n], in x's dtype. Weighting by gates is the caller's, `(y * gates[..., None]).sum(1)`.

        bfloat16 and float16 are summed in float32 and rounded once, as in `dsd` (the gradient of x once for each expert
        of a row, and once for their sum). A CPU's kernel reads x and the weights of the experts that have rows, widened
        for the call.

    Raises:
        TypeError, ValueError: naming the argument (an id of E or more: on an accelerator and under torch.compile an
        assertion on the device). RuntimeError: kernels that are not installed.

    Source: dropless mixture of experts as grouped products (MegaBlocks, MLSys 2023), by micro-tiles of one row (PIT,
    SOSP 2023).

    >>> x, weights = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[[10.0]], [[100.0]]])
    >>> grouped_matmul(x, weights, torch.tensor([1, 0, -1]), backend="reference").flatten()
    tensor([100.,  20.,   0.])
    """
    check_transforms("gossamer.ops.grouped_matmul", x, weights)
    check_matrix("x", x)
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    _check_weights(weights, x)
    _check_ids(expert_ids, x)
    check_backend(backend, "x", x)
    experts, repeat = weights.shape[0], expert_ids.shape[1] if expert_ids.dim() == 2 else 1
    if index is None:
        offsets, order = route(expert_ids.reshape(-1, 1), experts, "expert_ids")
    else:
        _check_index(index, experts, expert_ids)
        offsets, order = index.row_offsets(), index.indices.reshape(-1)
    args = (x, weights, order.to(torch.int32), offsets, repeat, False, backend)
    try:
        y = (GroupedMm.apply if (x.requires_grad or weights.requires_grad) and torch.is_grad_enabled() else mm)(*args)
    except ValueError as error:
        if index is None:
            raise
        raise ValueError(f"index is broken: {error}") from None
    return y if expert_ids.dim() == 1 else y.view(*expert_ids.shape, weights.shape[2])


def _check_weights(weights: Tensor, x: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights must be a tensor, got {type(weights).__name__}")
    if weights.dtype != x.dtype:
        raise TypeError(f"weights must have x's dtype {x.dtype}, got {weights.dtype}")
    if weights.dim() != 3 or weights.shape[1] != x.shape[1]:
        raise ValueError(
            f"weights must have shape [experts, {x.shape[1]}, n] for x's columns, got {tuple(weights.shape)}"
        )
    if weights.device != x.device:
        raise ValueError(f"weights must be on x's device {x.device}, got {weights.device}")


def _check_ids(expert_ids: Tensor, x: Tensor) -> None:
    if not isinstance(expert_ids, Tensor):
        raise TypeError(f"expert_ids must be a tensor, got {type(expert_ids).__name__}")
    if expert_ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"expert_ids must be int64, int32, int16, int8 or uint8, got {expert_ids.dtype}")
    if expert_ids.dim() not in (1, 2) or expert_ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"expert_ids must have shape [{x.shape[0]}] or [{x.shape[0]}, j], one row for each of x, "
            f"got {tuple(expert_ids.shape)}"
        )
    if expert_ids.device != x.device:
        raise ValueError(f"expert_ids must be on x's device {x.device}, got {expert_ids.device}")


def _check_index(index: Pattern, experts: int, expert_ids: Tensor) -> None:
    check_pattern(index, "index")
    expected = (experts, expert_ids.numel()), (1, 1), expert_ids.device
    if (tuple(index.shape), tuple(index.tile), index.device) != expected:
        raise ValueError(
            f"index must be Pattern.from_ids(expert_ids.flatten(), {experts}), (shape, tile, device) {expected}, "
            f"got {(index.shape, index.tile, index.device)}"
        )
    offsets = index.offsets
    if offsets is not None and offsets.is_cpu and not is_recording() and bool(offsets[:1].any()):
        raise ValueError(
            f"index must have offsets that start at 0, got {int(offsets[0])}: its first tokens would be lost"
        )

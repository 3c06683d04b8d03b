"""grouped_matmul: every row with the matrix of its group; mixture of experts without capacity, padding or drops.

    y[t, j] = x[t] @ weights[expert_ids[t, j]]          zero where the id is negative

Two ops carry it, grouped_mm and grouped_outer, and the gradients of each are the other:

    entry e belongs to a group g(e) or to none; entry e of x is x[e // repeat]
    y[e] = x[e // repeat] @ w[g(e)]       dx[t] = sum over e // repeat == t of dy[e] @ w[g(e)]^T
                                          dw[g] = sum over e in g of x[e // repeat]^T dy[e]

`order` lists the entries group by group, `offsets` where each group starts: a routing pattern's indices and offsets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.ops.arguments import FLOATS
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.grouped_half import half_mm, half_outer
from gossamer.ops.index import check_pattern
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.pattern import Pattern
from gossamer.pattern.build import route
from gossamer.pattern.check import check_matrix, check_tensor, is_recording


def _fake_mm(
    x: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    transposed: bool,
    out_rows: int,
) -> Tensor:
    return x.new_empty(out_rows, weights.shape[1 if transposed else 2])


def _fake_outer(x: Tensor, dy: Tensor, source: Tensor | None, target: Tensor | None, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1], dy.shape[1])


mm_on = register(
    "grouped_mm",
    "(Tensor x, Tensor? source, Tensor? target, Tensor offsets, Tensor weights, bool transposed, SymInt out_rows) -> "
    "Tensor",
    _fake_mm,
    module="grouped",
    half=half_mm,
)
outer_on = register(
    "grouped_outer",
    "(Tensor x, Tensor dy, Tensor? source, Tensor? target, Tensor offsets) -> Tensor",
    _fake_outer,
    module="grouped",
    half=half_outer,
)


def _folded(entries: Tensor, rows: int, repeat: int) -> Tensor:
    return entries if repeat == 1 else entries.view(rows, repeat, entries.shape[1]).sum(1)


def _row(order: Tensor, repeat: int) -> Tensor:
    return order if repeat <= 1 else order // repeat  # no entry at all if 0


class GroupedMm(Differentiable):
    """x[t, k], weights[groups, k, n] (or [groups, n, k] and `transposed`) -> y[t * repeat, n]."""

    name = "grouped_matmul"

    @staticmethod
    def compute(
        x: Tensor,
        weights: Tensor,
        order: Tensor,
        offsets: Tensor,
        repeat: int,
        transposed: bool,
        backend: Backend | None,
    ) -> Tensor:
        return mm_on(backend)(x, _row(order, repeat), order, offsets, weights, transposed, x.shape[0] * repeat)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, order: Tensor, offsets: Tensor, repeat: int, transposed: bool,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, x, weights, order, offsets)
        ctx.repeat, ctx.transposed, ctx.backend = repeat, transposed, backend
        return GroupedMm.compute(x, weights, order, offsets, repeat, transposed, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, order, offsets = ctx.saved_tensors
        grad_x = grad_weights = None
        if ctx.needs_input_grad[0]:
            entries = GroupedMm.call(grad, weights, order, offsets, 1, not ctx.transposed, ctx.backend)
            grad_x = _folded(entries, x.shape[0], ctx.repeat)
        if ctx.needs_input_grad[1]:
            grad_weights = GroupedOuter.call(x, grad, order, offsets, ctx.repeat, ctx.transposed, ctx.backend)
        return grad_x, grad_weights, None, None, None, None, None


class GroupedOuter(Differentiable):
    """x[t, k], dy[t * repeat, n] -> dw[groups, k, n], or [groups, n, k] and `transposed`."""

    name = "grouped_matmul"

    @staticmethod
    def compute(
        x: Tensor, dy: Tensor, order: Tensor, offsets: Tensor, repeat: int, transposed: bool, backend: Backend | None
    ) -> Tensor:
        if transposed:  # written as the weights lie, so that nobody has to copy it there
            return outer_on(backend)(dy, x, order, _row(order, repeat), offsets)
        return outer_on(backend)(x, dy, _row(order, repeat), order, offsets)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dy: Tensor, order: Tensor, offsets: Tensor, repeat: int, transposed: bool,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, x, dy, order, offsets)
        ctx.repeat, ctx.transposed, ctx.backend = repeat, transposed, backend
        return GroupedOuter.compute(x, dy, order, offsets, repeat, transposed, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dy, order, offsets = ctx.saved_tensors
        grad_x = grad_dy = None
        if ctx.needs_input_grad[0]:
            entries = GroupedMm.call(dy, grad, order, offsets, 1, not ctx.transposed, ctx.backend)
            grad_x = _folded(entries, x.shape[0], ctx.repeat)
        if ctx.needs_input_grad[1]:
            grad_dy = GroupedMm.call(x, grad, order, offsets, ctx.repeat, ctx.transposed, ctx.backend)
        return grad_x, grad_dy, None, None, None, None, None


def grouped_matmul(
    x: Tensor,
    weights: Tensor,
    expert_ids: Tensor,
    *,
    index: Pattern | None = None,
    transposed: bool = False,
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
        transposed: weights are [E, n, k], as nn.Linear keeps each of them.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        [T, n], or [T, j, n], in x's dtype. Weighting by gates is the caller's, `(y * gates[..., None]).sum(1)`.

        bfloat16 and float16 are summed in float32 and rounded once, as in `dsd` (the gradient of x once for each expert
        of a row, and once for their sum). A CPU that multiplies half floats reads weights as they are; others read the
        weights of the experts that have rows, widened for the call.

    Raises:
        TypeError, ValueError: naming the argument (an id of E or more: on an accelerator and under torch.compile an
        assertion on the device). RuntimeError: kernels that are not installed.

    Source: dropless mixture of experts as grouped products (MegaBlocks, MLSys 2023), by micro-tiles of one row (PIT,
    SOSP 2023).

    >>> x, weights = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[[10.0]], [[100.0]]])
    >>> grouped_matmul(x, weights, torch.tensor([1, 0, -1]), backend="reference").flatten()
    tensor([100.,  20.,   0.])
    """
    check_matrix("x", x)
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    _check_weights(weights, x, transposed)
    _check_ids(expert_ids, x)
    check_backend(backend, "x", x)
    experts, repeat = weights.shape[0], expert_ids.shape[1] if expert_ids.dim() == 2 else 1
    if index is None:
        offsets, order = route(expert_ids.reshape(-1, 1), experts, "expert_ids")
    else:
        _check_index(index, experts, expert_ids)
        offsets, order = index.row_offsets(), index.indices.reshape(-1)
    try:
        y = GroupedMm.call(x, weights, order.to(torch.int32), offsets, repeat, transposed, backend)
    except ValueError as error:
        if index is None:
            raise
        raise ValueError(f"index is broken: {error}") from None
    return y if expert_ids.dim() == 1 else y.view(*expert_ids.shape, y.shape[1])


def _check_weights(weights: Tensor, x: Tensor, transposed: bool) -> None:
    check_tensor("weights", weights)
    if weights.dtype != x.dtype:
        raise TypeError(f"weights must have x's dtype {x.dtype}, got {weights.dtype}")
    if weights.dim() != 3 or weights.shape[2 if transposed else 1] != x.shape[1]:
        expected = f"n, {x.shape[1]}" if transposed else f"{x.shape[1]}, n"
        raise ValueError(f"weights must have shape [experts, {expected}] for x's columns, got {tuple(weights.shape)}")
    if weights.device != x.device:
        raise ValueError(f"weights must be on x's device {x.device}, got {weights.device}")


def _check_ids(expert_ids: Tensor, x: Tensor) -> None:
    check_tensor("expert_ids", expert_ids)
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

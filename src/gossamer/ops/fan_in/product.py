"""fan_in_mm: a dense matrix times the transpose of one whose rows have equally many elements, in the form they have.

    y[b, r] = sum over j of values[r, j] * x[b, indices[r, j]]

A neuron of a sparse layer with k inputs is such a row (constant fan-in), a label of a large classifier another. The
indices need no offsets: row r owns the k slots from r * k on. S being that matrix [rows, cols], three ops are closed
under differentiation, and each reads `indices` as they are:

    fan_in_mm    y = x S^T                            dx = fan_in_mm_t(dy)    dvalues = fan_in_sdd(dy, x)
    fan_in_mm_t  x = y S
    fan_in_sdd   values = y^T x at the elements of S
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gossamer.ops.arguments import check_factor
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.index import check_grid, check_pattern
from gossamer.ops.registration import Backend, check_backend, in_float32, register
from gossamer.pattern import Pattern


def _fake(x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty(values.shape[0], x.shape[0]).t()


def _fake_t(dy: Tensor, values: Tensor, indices: Tensor, cols: int) -> Tensor:
    return dy.new_empty(dy.shape[0], cols)


def _fake_sdd(dy: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty(indices.shape)


_half = in_float32(like=0)
fan_in_mm_on = register(
    "fan_in_mm", "(Tensor x, Tensor values, Tensor indices) -> Tensor", _fake, strided=(0,), half=_half
)
fan_in_mm_t_on = register(
    "fan_in_mm_t",
    "(Tensor dy, Tensor values, Tensor indices, SymInt cols) -> Tensor",
    _fake_t,
    strided=(0,),
    half=_half,
)
fan_in_sdd_on = register(
    "fan_in_sdd", "(Tensor dy, Tensor x, Tensor indices) -> Tensor", _fake_sdd, strided=(0, 1), half=_half
)


class FanInMm(Differentiable):
    """x[batch, cols], values[rows, k], indices[rows, k] -> y[batch, rows]."""

    name = "fan_in_mm"

    @staticmethod
    def compute(x: Tensor, values: Tensor, indices: Tensor, backend: Backend | None) -> Tensor:
        return fan_in_mm_on(backend)(x, values, indices)

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, indices: Tensor, backend: Backend | None) -> Tensor:
        save(ctx, x, values, indices)
        ctx.backend = backend
        return fan_in_mm_on(backend)(x, values, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, indices = ctx.saved_tensors
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = FanInMmT.call(grad, values, indices, x.shape[1], ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_values = FanInSdd.call(grad, x, indices, ctx.backend)
        return grad_x, grad_values, None, None


class FanInMmT(Differentiable):
    """dy[batch, rows], values[rows, k], indices[rows, k] -> dx[batch, cols]."""

    name = "fan_in_mm"

    @staticmethod
    def compute(dy: Tensor, values: Tensor, indices: Tensor, cols: int, backend: Backend | None) -> Tensor:
        return fan_in_mm_t_on(backend)(dy, values, indices, cols)

    @staticmethod
    def forward(ctx: Any, dy: Tensor, values: Tensor, indices: Tensor, cols: int, backend: Backend | None) -> Tensor:
        save(ctx, dy, values, indices)
        ctx.backend = backend
        return fan_in_mm_t_on(backend)(dy, values, indices, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dy, values, indices = ctx.saved_tensors
        grad_dy = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_dy = FanInMm.call(grad, values, indices, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_values = FanInSdd.call(dy, grad, indices, ctx.backend)
        return grad_dy, grad_values, None, None, None


class FanInSdd(Differentiable):
    """dy[batch, rows], x[batch, cols], indices[rows, k] -> values[rows, k]."""

    name = "fan_in_mm"

    @staticmethod
    def compute(dy: Tensor, x: Tensor, indices: Tensor, backend: Backend | None) -> Tensor:
        return fan_in_sdd_on(backend)(dy, x, indices)

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, indices: Tensor, backend: Backend | None) -> Tensor:
        save(ctx, dy, x, indices)
        ctx.backend = backend
        return fan_in_sdd_on(backend)(dy, x, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, indices = ctx.saved_tensors
        grad_dy = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_dy = FanInMm.call(x, grad, indices, ctx.backend)
        if ctx.needs_input_grad[1]:
            grad_x = FanInMmT.call(dy, grad, indices, x.shape[1], ctx.backend)
        return grad_dy, grad_x, None, None


def fan_in_mm(x: Tensor, values: Tensor, pattern: Pattern, *, backend: Backend | None = None) -> Tensor:
    """y = x @ S.t(), S [rows, cols] having `values` at the pattern's elements. Differentiable to any order.

    What S has no element for takes no part: NaN or infinity in a column of x that no row names does not reach y. Sums
    run in float32 (float64 for float64), do not depend on the number of threads nor on the run, and are rounded once.

    Args:
        x: [batch, cols], float64, float32, bfloat16 or float16, row-major or a transposed view.
        values: [rows, k], of x's dtype.
        pattern: fan-in: single elements, `indices` [rows, k] and no offsets; a column that a row names twice counts
            twice. Read at face value on a GPU; see `pattern.validate()`.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        y [batch, rows] in x's dtype, the transposed view of a contiguous [rows, batch].

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: constant fan-in of SRigL (arXiv 2305.02299, section 3); SPARTEX (arXiv 2411.03171, section 3).

    >>> pattern = Pattern(None, torch.tensor([[0, 2], [1, 2]], dtype=torch.uint16), (2, 3), (1, 1))
    >>> x, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 10.0], [2.0, 1.0]])
    >>> fan_in_mm(x, values, pattern, backend="reference")
    tensor([[31.,  7.]])
    """
    check_pattern(pattern)
    if pattern.offsets is not None or tuple(pattern.tile) != (1, 1):
        form = "no offsets" if pattern.offsets is None else "offsets"
        raise ValueError(f"pattern must be fan-in, single elements without offsets, got {form} and tile {pattern.tile}")
    check_grid(pattern)
    check_factor("x", x, pattern.device)
    if x.shape[1] != pattern.shape[1]:
        raise ValueError(f"x must have {pattern.shape[1]} columns, as the pattern, got shape {tuple(x.shape)}")
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {type(values).__name__}")
    expected = tuple(pattern.indices.shape)
    if tuple(values.shape) != expected:
        raise ValueError(f"values must have the shape {expected} of the pattern's indices, got {tuple(values.shape)}")
    if values.dtype != x.dtype:
        raise TypeError(f"values must have x's dtype {x.dtype}, got {values.dtype}")
    if values.device != x.device:
        raise ValueError(f"values must be on x's device {x.device}, got {values.device}")
    check_backend(backend, "x", x)
    return FanInMm.call(x, values, pattern.indices, backend)

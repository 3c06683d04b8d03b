"""dsd, dds, sdd (d dense, s sparse; out, left, right): products with a matrix of which only tiles are present.

    dsd     c = S b      c[i, :] = sum over tiles (r, s) of S of values[s] @ b[columns of the tile, :]
    dds     c = a S      computed as (S^T a^T)^T
    sdd     values[s] = a[rows of tile s, :] @ b[:, columns of tile s]

The gradients of each are the others, so any order of derivative exists:

    c = S b          dS = sample(dc b^T)      db = S^T dc
    c = S^T b        dS = sample(b dc^T)      db = S dc
    S = sample(a b)  da = dS b^T              db = a^T dS = (dS^T a)^T

The autograd functions take the pattern as `index`: (offsets, indices, work, offsets_t, indices_t, order, work_t). The
last four belong to the transposed pattern and are None until something needs them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gossamer.ops.arguments import check_factor, check_product, check_transposed
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.index import check_pattern
from gossamer.ops.registration import Backend, check_backend, in_float32, register
from gossamer.ops.tiles import Transposed, transpose, transpose_on
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern


def _fake_dsd(
    values: Tensor, offsets: Tensor, indices: Tensor, order: Tensor | None, scale: Tensor | None, b: Tensor,
    rows: int, transposed: bool, column_major: bool, work: Tensor | None,
) -> Tensor:  # fmt: skip
    n = b.shape[1]
    return b.new_empty(n, rows).t() if column_major else b.new_empty(rows, n)


def _fake_sdd(a: Tensor, b: Tensor, offsets: Tensor, indices: Tensor, bm: int, bn: int) -> Tensor:
    return a.new_empty(indices.shape[0], bm, bn)


dsd_on = register(
    "dsd",
    "(Tensor values, Tensor offsets, Tensor indices, Tensor? order, Tensor? scale, Tensor b, SymInt rows, "
    "bool transposed, bool column_major, Tensor? work) -> Tensor",
    _fake_dsd,
    strided=(5,),
    half=in_float32(like=5, stored=0),
)
sdd_on = register(
    "sdd",
    "(Tensor a, Tensor b, Tensor offsets, Tensor indices, SymInt bm, SymInt bn) -> Tensor",
    _fake_sdd,
    strided=(0, 1),
    half=in_float32(like=0),
)


def index_of(pattern: Pattern, transposed: Transposed | None, work: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors of a pattern and, if given, of its transposed one."""
    index = pattern.row_offsets(), pattern.indices.reshape(-1), work
    if transposed is None:
        return *index, None, None, None, None
    other = transposed.pattern
    return *index, other.row_offsets(), other.indices.reshape(-1), transposed.order, transposed.work


def _with_transposed(index: list[Any], tile_cols: int, backend: Backend | None) -> list[Any]:
    if index[3] is not None:
        return index
    return [*index[:3], *transpose_on(backend)(*index[:2], tile_cols), None]


def is_column_major(x: Tensor) -> bool:
    return x.stride(-2) == 1 and x.stride(-1) != 1


class Dsd(Differentiable):
    """S @ b, or S^T @ b where `transposed`; S is [rows, cols]."""

    name = "dsd"

    @staticmethod
    def compute(
        values: Tensor, b: Tensor, scale: Tensor | None, rows: int, cols: int, transposed: bool, column_major: bool,
        backend: Backend | None, *index: Tensor | None,
    ) -> Tensor:  # fmt: skip
        offsets, indices, work, offsets_t, indices_t, order, work_t = index
        if transposed:
            return dsd_on(backend)(values, offsets_t, indices_t, order, scale, b, cols, True, column_major, work_t)
        return dsd_on(backend)(values, offsets, indices, None, scale, b, rows, False, column_major, work)

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, b: Tensor, scale: Tensor | None, rows: int, cols: int, transposed: bool,
        column_major: bool, backend: Backend | None, *index: Tensor | None,
    ) -> Tensor:  # fmt: skip
        save(ctx, values, b, scale, *index)
        ctx.sizes, ctx.transposed, ctx.backend = (rows, cols), transposed, backend
        return Dsd.compute(values, b, scale, rows, cols, transposed, column_major, backend, *index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, b, scale, *index = ctx.saved_tensors
        (rows, cols), backend, (bm, bn) = ctx.sizes, ctx.backend, values.shape[1:]
        grad_values = grad_b = None
        if ctx.needs_input_grad[0]:
            left, right = (b, grad.t()) if ctx.transposed else (grad, b.t())
            grad_values = Sdd.call(left, right, bm, bn, backend, *index)
            if scale is not None:
                grad_values = grad_values * scale.view(-1, 1, 1)
            grad_values = grad_values.to(values.dtype)
        if ctx.needs_input_grad[1]:
            if not ctx.transposed:
                index = _with_transposed(index, (cols + bn - 1) // bn, backend)
            grad_b = Dsd.call(values, grad, scale, rows, cols, not ctx.transposed, is_column_major(b), backend, *index)
        return grad_values, grad_b, *[None] * 13


class Sdd(Differentiable):
    """The tiles of a @ b."""

    name = "sdd"

    @staticmethod
    def compute(a: Tensor, b: Tensor, bm: int, bn: int, backend: Backend | None, *index: Tensor | None) -> Tensor:
        return sdd_on(backend)(a, b, *index[:2], bm, bn)

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, bm: int, bn: int, backend: Backend | None, *index: Tensor | None
    ) -> Tensor:
        save(ctx, a, b, *index)
        ctx.tile, ctx.backend = (bm, bn), backend
        return Sdd.compute(a, b, bm, bn, backend, *index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *index = ctx.saved_tensors
        backend, (_, bn) = ctx.backend, ctx.tile
        sizes = a.shape[0], b.shape[1]
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = Dsd.call(grad, b.t(), None, *sizes, False, is_column_major(a), backend, *index)
        if ctx.needs_input_grad[1]:
            index = _with_transposed(index, (sizes[1] + bn - 1) // bn, backend)
            grad_b = Dsd.call(grad, a, None, *sizes, True, not is_column_major(b), backend, *index).t()
        return grad_a, grad_b, *[None] * 10


def dsd(
    values: Tensor,
    pattern: Pattern,
    b: Tensor,
    *,
    transposed: Transposed | None = None,
    work: Tensor | None = None,
    scale: Tensor | None = None,
    column_major: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """c = S @ b, S [rows, k] being the matrix with `values` at the pattern's tiles. Differentiable to any order.

    What no tile covers takes no part: NaN or infinity in a row of b that no tile reads does not reach c. Sums run in
    float32 (float64 for float64), do not depend on the number of threads nor on the run, and are rounded once: a result
    in bfloat16 is off by 2^-8 of itself at most beyond float32's error, in float16 by 2^-11. A CPU's kernel reads
    bfloat16 and int8 values as they are; other half operands are widened for the call.

    Args:
        values: [capacity, bm, bk], float, in b's dtype or stored shorter (bfloat16, or int8 with `scale`) beside a
            float32 b. What slack slots and the padding of ragged tiles hold does not matter.
        pattern: the tiles of S; read at face value on a GPU; see `pattern.validate()`.
        b: [k, n], float64, float32, bfloat16 or float16, row-major or a transposed view; neither is copied.
        transposed: `gossamer.ops.transpose(pattern)`, for the gradient of b; made when needed if None.
        work: int64[parts, segments, 3], who does what (`gossamer.planner`); None lets the kernel divide. It must hold
            each slot once; only slots whose values are zero may be left out (`gossamer.planner.Encoded.keep`).
        scale: float32[capacity] | None, a factor for each tile. Has no gradient.
        column_major: return c as the transposed view of a contiguous [n, rows] (y of a linear: `dsd(w, p, x.t(),
            column_major=True).t()`).
        backend: None for the kernels of b's device; "cpu", "triton" or "reference" to insist.

    Returns:
        c [rows, n] in b's dtype. Gradients: values get `sdd(dc, b.t())`, at the pattern's tiles and nowhere else, b
        gets `S.t() @ dc`.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: dynamic sparse-dense product of PopSparse (arXiv 2303.16999, section 3).

    >>> pattern = Pattern.from_mask(torch.tensor([[True, False], [False, False]]))
    >>> dsd(torch.tensor([[[2.0]]]), pattern, torch.tensor([[1.0, 3.0], [5.0, float("nan")]]), backend="reference")
    tensor([[2., 6.],
            [0., 0.]])
    """
    check_product("b", b, values, pattern, transposed, work, scale, backend)
    index = index_of(pattern, transposed, work)
    return Dsd.call(values, b, scale, *pattern.shape, False, column_major, backend, *index)


def dds(
    a: Tensor,
    values: Tensor,
    pattern: Pattern,
    *,
    transposed: Transposed | None = None,
    work: Tensor | None = None,
    scale: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """c = a @ S, S [k, cols] being the matrix with `values` at the pattern's tiles. Differentiable to any order.

    Args:
        a: [m, k], float64, float32, bfloat16 or float16, row-major or a transposed view; neither is copied.
        values: [capacity, bk, bn], as in `dsd`.
        pattern: the tiles of S; read at face value on a GPU; see `pattern.validate()`.
        transposed: `gossamer.ops.transpose(pattern)`; this product goes down the columns of S, so it is made at every
            call if None. Its `work` divides this product.
        work: work partition of products with S itself, here the gradient of a; see `dsd`.
        scale: float32[capacity] | None, a factor for each tile. Has no gradient.
        backend: None for the kernels of a's device; "cpu", "triton" or "reference" to insist.

    Returns:
        c [m, cols], contiguous, in a's dtype; what no tile covers takes no part, and half types are summed and rounded,
        as in `dsd`. Gradients: a gets
        `dc @ S.t()`, values get `sdd(a.t(), dc)`.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    >>> pattern = Pattern.from_mask(torch.tensor([[False, True], [False, False]]))
    >>> dds(torch.tensor([[1.0, 5.0]]), torch.tensor([[[2.0]]]), pattern, backend="reference")
    tensor([[0., 2.]])
    """
    check_transforms("gossamer.ops.dds", a, values)
    check_product("a", a, values, pattern, transposed, work, scale, backend)
    if transposed is None:
        transposed = transpose(pattern, backend=backend)
    index = index_of(pattern, transposed, work)
    return Dsd.call(values, a.t(), scale, *pattern.shape, True, True, backend, *index).t()


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
    return Sdd.call(a, b, *pattern.tile, backend, *index_of(pattern, transposed, None))

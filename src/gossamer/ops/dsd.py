"""dsd: sparse times dense.

c[i, :] = sum over tiles (r, s) of S  of  values[s] @ b[columns of the tile, :]
"""

from __future__ import annotations

from torch import Tensor

from gossamer.ops._arguments import check_product
from gossamer.ops._products import dsd_of, index_of
from gossamer.ops._register import Backend, check_transforms
from gossamer.ops.transpose import Transposed
from gossamer.pattern import Pattern


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
    check_transforms("gossamer.ops.dsd", values, b)
    check_product("b", b, values, pattern, transposed, work, scale, backend)
    index = index_of(pattern, transposed, work)
    return dsd_of(values, b, scale, *pattern.shape, False, column_major, backend, *index)

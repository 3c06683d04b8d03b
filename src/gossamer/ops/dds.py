"""dds: dense times sparse.

c = a @ S = (S^T @ a^T)^T
"""

from __future__ import annotations

from torch import Tensor

from gossamer.ops._arguments import check_product
from gossamer.ops._products import dsd_of, index_of
from gossamer.ops._register import Backend, check_transforms
from gossamer.ops.transpose import Transposed, transpose
from gossamer.pattern import Pattern


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
        work: division of labour for products with S itself, here the gradient of a; see `dsd`.
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
    return dsd_of(values, a.t(), scale, *pattern.shape, True, True, backend, *index).t()

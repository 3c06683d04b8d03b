"""skip_mv: few rows times a matrix, reading only the rows of the matrix that meet something; decoding token by token.

y[b] = bias + sum of x[b, c] * w[c] over the c with |x[b, c]| > threshold
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops._mv import check_bias, check_operands, skip
from gossamer.ops._register import Backend, check_transforms


def skip_mv(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *, threshold: float = 0.0, backend: Backend | None = None
) -> Tensor:
    """x @ w + bias without the elements of x that are at most `threshold` in size. Differentiable, to any order.

    The time of such a product is that of reading w, and a row of w that no row of x needs is never read: at 70 % zeros
    less than a third of it is. With B rows of x that drop places independently, a row of w is read if any of them needs
    it, so what is saved shrinks quickly with B; above about 8 rows use `gs.ops.linear`.

    Args:
        x: [B, C] or [C], contiguous (else copied). float32 or bfloat16 on a CPU, also float16 on a GPU.
        w: [C, K], contiguous (else copied on every call): the transpose of `torch.nn.Linear.weight`, row c holding what
            input c contributes. x's dtype, or bfloat16 beside a float32 x.
        bias: [K], or None.
        threshold: at least 0; in float32. 0 drops zeros only. NaN is never dropped.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist. The last takes float64.

    Returns:
        [B, K] or [K] in x's dtype, summed in float32. Same bits on any number of threads and in every run; on a CPU a
        row does not depend on the others. Inf and NaN in rows of w that are skipped do not reach y.
        Gradients are those of this function: with a threshold above 0 a dropped x gets zero, and its row of w is not
        read for it either; with threshold 0, where dropping changes nothing, every x gets its own.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: thresholded activations and one row of weights per input channel are those of TEAL (arXiv 2408.14690).

    >>> import torch
    >>> x, w = torch.tensor([0.0, 2.0, 0.1]), torch.tensor([[float("inf")], [3.0], [100.0]])
    >>> skip_mv(x, w, backend="reference"), skip_mv(x, w, threshold=0.5, backend="reference")
    (tensor([16.]), tensor([6.]))
    """
    rows = check_operands(x, w, 0, backend)
    check_bias(bias, w.shape[1], x)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    check_transforms("gossamer.ops.skip_mv", x, w, bias)
    y = skip(rows, w, bias, torch.tensor(float(threshold), dtype=torch.float64, device="cpu"), backend)
    return y if x.dim() == 2 else y.squeeze(0)

"""statistical_topk: about the k largest of each row, found from its mean and spread in linear time (Spark Transformer).

t = mean(x) + std(x) * z,   y = max(x - t, 0),   z = the quantile of the normal distribution above which k/d of it lie
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from gossamer.ops._constant import constant_in_graphs


def statistical_topk(x: Tensor, k: int, *, dim: int = -1) -> Tensor:
    """max(x - t, 0) along `dim`, with the threshold t that about k entries exceed. Differentiable to any order.

    Two sums over a row replace a selection, so the time is linear and vectorised, and the result is continuous in x:
    an entry fades out instead of being dropped. Gradients go through the mean and the spread as well.

    How many entries are left is a statement about the data, not a promise. With d entries per row, independent and
    normal (any mean, any scale), every entry exceeds t with the same probability,

        P(T > z * sqrt(d (d - 2) / ((d - 1)^2 - d z^2)))        T Student's t with d - 2 degrees of freedom,

    whose limit for large d is k / d, and the count varies by less than sqrt(k) from row to row. On other data the count
    follows the tail: never more than d / (1 + z^2) where z > 0 (Cantelli), and as few as none.

    Args:
        x: [..., d, ...] float64, float32, bfloat16 or float16; half types are summed in float32.
        k: entries to keep of each row, 1 <= k < d.
        dim: the axis of the d entries.

    Returns:
        y of x's shape and dtype. A row whose entries are all equal has no spread and gives zeros. NaN or infinity in
        a row makes the row NaN.

    Raises:
        TypeError: x is no float tensor, or k no int. ValueError: k out of range. IndexError: dim out of range.

    Source: You et al., "Spark Transformer: reactivating sparsity in FFN and attention", 2025, section 3
    (statistical top-k: soft threshold at mean + std * Q(1 - k/d), std with d - 1 in the denominator).

    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    >>> statistical_topk(x, 1)
    tensor([0.0000, 0.0000, 0.0000, 0.0000, 3.4652])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a float tensor, got {x.dtype}")
    check_k(k)
    d = x.size(dim)
    if k >= d:
        raise ValueError(f"k must be less than {d}, the size of dim {dim}, got {k}")
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = wide - wide.mean(dim, keepdim=True)
    # A norm is one vectorised pass; torch.std takes eight times as long. Both have the gradient 0 at 0.
    deviation = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    shift = deviation * (_quantile(k, d) / math.sqrt(d - 1))
    if torch.is_grad_enabled() and x.requires_grad:
        return (centred - shift).relu().to(x.dtype)
    return centred.sub_(shift).relu_().to(x.dtype)


def check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


@constant_in_graphs
def _quantile(k: int, d: int) -> float:
    return NormalDist().inv_cdf(1 - k / d)

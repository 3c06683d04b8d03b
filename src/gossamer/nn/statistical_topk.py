"""Statistical top-k as a layer: an activation with a chosen share of nonzeros (Spark Transformer)."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer import ops
from gossamer.ops.gemv import check_k


class StatisticalTopK(nn.Module):
    """max(x - t, 0) with t = mean + std * quantile, which about k entries of `dim` exceed: `gs.ops.statistical_topk`.

    Put it before the activation, or in place of ReLU, and the product behind it reads about k of d inputs. It has no
    parameters and nothing to calibrate: the threshold is each row's own.

    Args:
        k: entries to keep of each row, at least 1 and less than the size of `dim`.
        dim: the axis of a row.

    >>> block = nn.Sequential(nn.Linear(16, 64), StatisticalTopK(8), nn.Linear(64, 16))
    >>> block(torch.randn(4, 16)).shape
    torch.Size([4, 16])
    """

    def __init__(self, k: int, dim: int = -1) -> None:
        super().__init__()
        check_k(k)
        self.k, self.dim = k, dim

    def forward(self, x: Tensor) -> Tensor:
        """x[..., d, ...] -> the same shape and dtype."""
        return ops.statistical_topk(x, self.k, dim=self.dim)

    def extra_repr(self) -> str:
        return f"k={self.k}, dim={self.dim}"

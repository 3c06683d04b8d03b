"""A vision transformer (Dosovitskiy et al. 2021): pre-norm attention and MLP blocks over image patches.

Queries, keys and values are separate Linears and the number of heads is whatever is left of them:
`view(batch, length, -1, head_dim)`. A head is `head_dim` rows of each of the three and as many columns of the output
projection; taking these away is all that removing a head needs. Tokens are averaged instead of read from a class token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head self-attention over `heads` heads of width `dim // heads`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    @property
    def num_heads(self) -> int:
        """How many heads there are now."""
        return self.query.out_features // self.head_dim

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, length, dim] -> [batch, length, dim]."""
        y = scaled_dot_product_attention(
            self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        )
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.gelu = nn.GELU()
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, length, dim] -> [batch, length, dim]."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches, learned positions, blocks, LayerNorm, the mean over tokens, one Linear.

    Args:
        input_shape: (channels, height, width) of one image; height and width are multiples of `patch`.
        classes: number of outputs.
        patch: edge of a patch in pixels; by default the largest of 16, 8, 4, 2, 1 that gives 4x4 patches or more.
        dim: width of a token.
        depth: blocks.
        heads: attention heads; divides `dim`.
        mlp_ratio: hidden neurons of a block's MLP, as a multiple of `dim`.

    Raises:
        ValueError: the patch does not divide the image, or the heads do not divide `dim`.

    >>> import torch, gossamer as gs
    >>> gs.models.ViT((1, 8, 8), 10, dim=32, depth=1, heads=2)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        patch: int | None = None,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if patch is None:
            fitting = (p for p in (16, 8, 4, 2) if height % p == 0 and width % p == 0 and min(height, width) >= 4 * p)
            patch = next(fitting, 1)
        if height % patch or width % patch:
            raise ValueError(f"patch is {patch}; expected a divisor of the image's {height}x{width} pixels")
        if dim % heads:
            raise ValueError(f"heads is {heads}; expected a divisor of dim, which is {dim}")
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (height // patch) * (width // patch), dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, channels, height, width] -> logits[batch, classes]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))

"""The networks of the table that read sequences of tokens, one class per topology."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, size: int, how: str) -> None:
        super().__init__()
        self.heads, self.size, self.how = heads, size, how
        self.qkv, self.proj = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, s, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "matmul":
            y = ((q @ k.transpose(-2, -1)) * self.size**-0.5).softmax(-1) @ v
        else:
            scores = torch.einsum("nhsd,nhtd->nhst", q, k) * self.size**-0.5
            y = torch.einsum("nhst,nhtd->nhsd", scores.softmax(-1), v)
        return self.proj(y.transpose(1, 2).reshape(n, s, self.heads * self.size))


class MiniViT(nn.Module):
    """Patches, class token, positions, one pre-norm block, pooled classifier."""

    def __init__(self, how: str = "sdpa") -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.attn = nn.LayerNorm(12), Attention(12, 4, 3, how)
        self.norm2, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + self.attn(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class GroupedQueries(nn.Module):
    """Two key/value heads serve six query heads, in the two ways models write it."""

    def __init__(self, native: bool) -> None:
        super().__init__()
        self.native, self.size, self.ratio = native, 4, 3
        self.q, self.k, self.v, self.o = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = (layer(x).view(n, s, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if not self.native:
            k, v = k.repeat_interleave(self.ratio, 1), v.repeat_interleave(self.ratio, 1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.native)
        return self.o(y.transpose(1, 2).reshape(n, s, -1))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)
        self.packed, self.out = nn.Linear(6, 14), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return self.out(F.glu(self.packed(x), -1))


class Encoder(nn.Module):
    """PyTorch's own encoder layer: its attention cannot lose heads, its feed-forward can lose channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


class Recurrent(nn.Module):
    """A recurrent layer is a barrier as one operator, and steps of a known kind when taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gru, self.b, self.c = nn.Linear(6, 8), nn.GRU(8, 7), nn.Linear(7, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.gru(self.a(x))[0])))


class Mixer(nn.Module):
    """Token mixing and channel mixing: the transpose swaps which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.t1, self.t2 = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(4, 10), nn.Linear(10, 4)
        self.c1, self.c2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2)
        x = (x + self.t2(F.relu(self.t1(x)))).transpose(1, 2)
        return self.head((x + self.c2(F.relu(self.c1(x)))).sum(1))

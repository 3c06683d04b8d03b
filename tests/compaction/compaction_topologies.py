"""The networks of the table, one class per topology; those that read sequences are in a file of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("compaction_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """Looks element-wise, is not: the point of a barrier is not to guess."""
    return x - x.mean(1, keepdim=True)


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Sequence(nn.Module):
    """conv-bn-relu twice, pool, linear."""

    def __init__(self, widths: tuple[int, int] = (8, 12)) -> None:
        super().__init__()
        a, b = widths
        self.conv1, self.bn1 = nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.conv2, self.bn2 = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)
        self.fc = nn.Linear(b, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.sum((2, 3)))


class Residual(nn.Module):
    """Identity and projection shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.bna = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bnb = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c, self.bnc = nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10)
        self.down = nn.Conv2d(8, 10, 1, stride=2)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.bna(self.a(x)))
        x = F.relu(x + self.bnb(self.b(y)))
        z = self.bnc(self.c(x))
        z += self.down(x)
        return self.fc(F.relu(z).amax((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two dense ones; groups = width is the depthwise case."""

    def __init__(self, groups: int, width: int = 16, multiplier: int = 1) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, width, 1)
        self.mid = nn.Conv2d(width, width * multiplier, 3, padding=1, groups=groups)
        self.bn = nn.BatchNorm2d(width * multiplier)
        self.out = nn.Conv2d(width * multiplier, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bn(self.mid(F.relu(self.up(x))))))


class ResNeXt(nn.Module):
    """A bottleneck block with a grouped middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b, self.c = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c(F.relu(self.b(F.relu(self.a(x)))))
        return self.fc(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side (Inception)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)))


class ConcatSame(nn.Module):
    """cat([x, x]): every channel is read at two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(torch.cat([x, x], 1))


class Chunked(nn.Module):
    """chunk and slices: halves are recomputed from the width, so they shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 8), nn.Linear(6, 5)
        self.d = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, -1)
        y = self.b(F.relu(left) - 2 * right)
        half = y.shape[-1] // 2
        return self.d(y[..., :half] + F.relu(y[..., half:]))


class Shuffle(nn.Module):
    """Channel shuffle: the same columns must go from every group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.groups = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1), 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(x)


class Flat(nn.Module):
    """flatten before a linear layer: a channel owns H*W columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3), nn.Linear(7 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.flatten(F.relu(self.a(x)), 1))


class SharedModule(nn.Module):
    """One layer applied twice: its rows and columns are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mid, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(F.relu(self.mid(F.relu(self.mid(x)))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.b(x * gate)


class Transposed(nn.Module):
    """Decoder with plain and grouped transposed convolutions and a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 2, stride=2)
        self.dec, self.grouped = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ConvTranspose2d(12, 8, 1, groups=4)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enc(x))
        x = F.relu(self.dec(F.relu(self.mid(skip))))
        return self.out(F.relu(self.grouped(torch.cat([x, skip], 1))))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


class Normed(nn.Module):
    """LayerNorm over the channels of one layer, none over those of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.norm(self.a(x)))))


class Mystery(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(mystery(self.a(x)))))


class Sloped(nn.Module):
    """PReLU slopes, a per-channel scale and a shift are members of the group they act on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 4, 1)
        self.scale, self.shift = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)) * self.scale + self.shift)


class Tied(nn.Module):
    """Input and output embeddings are one parameter: its columns are made and read by the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + F.relu(self.mid(x)))


class Dense(nn.Module):
    """DenseNet: every layer reads all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.fc(x.mean((2, 3)))


class Padded(nn.Module):
    """ResNet's parameter-free shortcut: the skip is padded with a fixed number of zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc((F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.a(x)).sum((2, 3)))


class Upscaled(nn.Module):
    """Pixel shuffle, interpolation and one-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shuffle, self.b = nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 6, 1)
        self.c = nn.Conv1d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(self.b(F.relu(self.shuffle(self.a(x))))), scale_factor=0.5)
        return self.c(x.flatten(2))


class Renormed(nn.Module):
    """Weight norm (a parametrised weight) and instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
        self.norm, self.b = nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


class Volume(nn.Module):
    """Three-dimensional convolution, batch norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 1)
        self.pool = nn.AdaptiveMaxPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2).expand(-1, -1, 2, -1, -1)
        return self.pool(self.b(F.relu(self.norm(self.a(x))))).flatten(1)

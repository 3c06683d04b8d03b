"""Residual networks (He et al. 2016): y = ReLU(F(x) + shortcut(x)), the shortcut a 1x1 convolution where shapes differ.

`resnet20` is the CIFAR network of the paper's section 4.2 with projection shortcuts (option B). `resnet34` and
`resnet50` are the ImageNet networks, the latter in its v1.5 form: the stride sits in the 3x3 convolution of a
bottleneck, not in the 1x1 before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def stages(block: Any, channels: int, depths: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Blocks `block(inputs, width, stride)` by stage; the first block of every stage but the first has stride 2."""
    found = []
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        blocks: list[nn.Module] = []
        for j in range(depth):
            blocks.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1))
            channels = width * block.expansion
        found.append(nn.Sequential(*blocks))
    return nn.Sequential(*found)


def draw_convolutions(model: nn.Module) -> None:
    """The weights of all convolutions as He et al. (2015) draw them, by fan-out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def imagenet(input_shape: Sequence[int], width: int) -> dict[str, Any]:
    """Depths, widths and stem of the ImageNet networks with (3, 4, 6, 3) blocks, for images of this shape."""
    widths = (width, 2 * width, 4 * width, 8 * width)
    return {"depths": (3, 4, 6, 3), "widths": widths, "large_stem": min(input_shape[1:]) >= 64}


class Basic(nn.Module):
    """Two 3x3 convolutions of `width` channels."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, inputs, h, w] -> [batch, width, h / stride, w / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 with the stride, 1x1 to 4 * `width` channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, inputs, h, w] -> [batch, 4 * width, h / stride, w / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, one Linear.

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        block: `Basic` or `Bottleneck`.
        depths: blocks of each stage; every stage after the first halves the resolution.
        widths: channels of each stage (a bottleneck puts out four times as many).
        large_stem: 7x7 stride 2 and max-pooling (images of 64 pixels and more) instead of 3x3 stride 1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        block: type[Basic] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        large_stem: bool,
    ) -> None:
        super().__init__()
        channels = widths[0]
        stem: list[nn.Module] = [
            _conv(input_shape[0], channels, 7, 2) if large_stem else _conv(input_shape[0], channels, 3),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        if large_stem:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        self.stages = stages(block, channels, depths, widths)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1] * block.expansion, classes)
        draw_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, channels, height, width] -> logits[batch, classes]."""
        return self.classifier(self.pool(self.stages(self.stem(x))).flatten(1))


def resnet20(input_shape: Sequence[int], classes: int, *, width: int = 16) -> ResNet:
    """CIFAR ResNet-20: three stages of three basic blocks, `width`, 2 * `width` and 4 * `width` channels.

    >>> import torch, gossamer as gs
    >>> gs.models.resnet20((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    widths = (width, 2 * width, 4 * width)
    return ResNet(input_shape, classes, block=Basic, depths=(3, 3, 3), widths=widths, large_stem=False)


def resnet34(input_shape: Sequence[int], classes: int, *, width: int = 64) -> ResNet:
    """ImageNet ResNet-34; images under 64 pixels get a 3x3 stem without pooling, as is usual on CIFAR.

    >>> import gossamer as gs
    >>> sum(p.numel() for p in gs.models.resnet34((3, 224, 224), 1000).parameters())
    21797672
    """
    return ResNet(input_shape, classes, block=Basic, **imagenet(input_shape, width))


def resnet50(input_shape: Sequence[int], classes: int, *, width: int = 64) -> ResNet:
    """ImageNet ResNet-50 v1.5; images under 64 pixels get a 3x3 stem without pooling, as is usual on CIFAR.

    >>> import gossamer as gs
    >>> sum(p.numel() for p in gs.models.resnet50((3, 224, 224), 1000).parameters())
    25557032
    """
    return ResNet(input_shape, classes, block=Bottleneck, **imagenet(input_shape, width))

"""Residual networks without normalisation: Fixup (Zhang, Dauphin and Ma, ICLR 2019).

What BatchNorm does for training is done by the initialisation and by one scalar before and after each convolution and
one scalar multiplier on each branch. Gradients then are zero wherever a ReLU is off; BatchNorm would spread the means
of its channels over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from gossamer.models.resnet import draw_convolutions, imagenet, stages


class ShiftedConv2d(nn.Module):
    """conv(x + before) + after, with one scalar each.

    Computed as conv(x) + conv(before) + after, the second term on one image of one channel with the weights summed over
    input channels: the zeros that a ReLU left in x reach the convolution as zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, after: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.before = nn.Parameter(torch.zeros(()))
        self.after = nn.Parameter(torch.zeros(())) if after else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride]."""
        conv = self.conv
        # Without padding every pixel of the second term is the same: one is enough.
        size = x.shape[-2:] if conv.padding != (0, 0) else (1, 1)
        field = self.before.expand(1, 1, *size)
        shift = F.conv2d(field, conv.weight.sum(1, keepdim=True), stride=conv.stride, padding=conv.padding)
        return conv(x) + (shift if self.after is None else shift + self.after)


class FixupBottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 with the stride, 1x1 to 4 * `width` channels, a multiplier, and the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = ShiftedConv2d(inputs, width, 1)
        self.conv2 = ShiftedConv2d(width, width, 3, stride)
        self.conv3 = ShiftedConv2d(width, outputs, 1, after=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ShiftedConv2d(inputs, outputs, 1, stride, after=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, inputs, h, w] -> [batch, 4 * width, h / stride, w / stride]."""
        y = torch.relu(self.conv1(x))
        y = torch.relu(self.conv2(y))
        y = self.conv3(y) * self.scale + self.shift
        return torch.relu(y + self.shortcut(x))


class FixupResNet(nn.Module):
    """Stem, stages of `FixupBottleneck`, global average pooling, one Linear.

    The first two convolutions of a branch start at He's deviation times blocks^(-1/4), the last of a branch and the
    Linear at zero: a step of the optimizer then changes the output by an amount that does not depend on the depth
    (section 3 of the paper; a branch of m layers takes blocks^(-1 / (2m - 2))).

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        depths: blocks of each stage; every stage after the first halves the resolution.
        widths: channels inside the bottlenecks of each stage, which put out four times as many.
        large_stem: 7x7 stride 2 and max-pooling (images of 64 pixels and more) instead of 3x3 stride 1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        depths: Sequence[int],
        widths: Sequence[int],
        large_stem: bool,
    ) -> None:
        super().__init__()
        channels = widths[0]
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.stem = nn.Conv2d(input_shape[0], channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.stem_shift = nn.Parameter(torch.zeros(()))
        self.stem_pool = nn.MaxPool2d(3, stride=2, padding=1) if large_stem else nn.Identity()
        self.stages = stages(FixupBottleneck, channels, depths, widths)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.shift = nn.Parameter(torch.zeros(()))
        self.classifier = nn.Linear(widths[-1] * FixupBottleneck.expansion, classes)
        draw_convolutions(self)
        with torch.no_grad():
            for block in self.modules():
                if isinstance(block, FixupBottleneck):
                    block.conv1.conv.weight.mul_(sum(depths) ** -0.25)
                    block.conv2.conv.weight.mul_(sum(depths) ** -0.25)
                    block.conv3.conv.weight.zero_()
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, channels, height, width] -> logits[batch, classes]."""
        y = self.stem_pool(torch.relu(self.stem(x) + self.stem_shift))
        return self.classifier(self.pool(self.stages(y)).flatten(1) + self.shift)


def fixup_resnet50(input_shape: Sequence[int], classes: int, *, width: int = 64) -> FixupResNet:
    """ResNet-50 without normalisation; images under 64 pixels get a 3x3 stem without pooling, as is usual on CIFAR.

    The shortcut of a block that changes shape has a scalar of its own; the paper's shares that of the first 1x1.

    >>> import torch, gossamer as gs
    >>> gs.models.fixup_resnet50((3, 32, 32), 10, width=8)(torch.randn(2, 3, 32, 32))[0].count_nonzero()
    tensor(0)
    """
    return FixupResNet(input_shape, classes, **imagenet(input_shape, width))

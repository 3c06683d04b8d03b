"""A plain stack of 3x3 convolutions, BatchNorm and ReLU: the default network of `gossamer train`.

Its widths are large enough that time follows channels: with 40 % of the channels gone from every layer, the inner
convolutions keep 0.6 * 0.6 = 36 % of their multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class ConvNet(nn.Module):
    """Convolutions with 2x2 max-pooling between them down to 4x4, global average pooling, one Linear.

    Args:
        input_shape: (channels, height, width) of one image; any height and width.
        classes: number of outputs.
        widths: channels of each convolution.

    >>> import torch, gossamer as gs
    >>> net = gs.models.ConvNet((1, 8, 8), 10, widths=(8, 16, 16))
    >>> net(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, *, widths: Sequence[int] = (64, 128, 128, 128)
    ) -> None:
        super().__init__()
        inputs, height, width = input_shape
        # Down to about 4x4, in as few and as late halvings as that takes: most of the work then lies in the inner
        # convolutions, which lose channels on both sides.
        halvings = max(0, int(math.log2(min(height, width) / 4))) if min(height, width) >= 4 else 0
        layers: list[nn.Module] = []
        for i, outputs in enumerate(widths):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
            if 1 <= len(widths) - 1 - i <= halvings:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, channels, height, width] -> logits[batch, classes]."""
        return self.classifier(self.pool(self.features(x)).flatten(1))

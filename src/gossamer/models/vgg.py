"""VGG-16 (Simonyan and Zisserman 2015, column D), with BatchNorm unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gossamer.models.resnet import draw_convolutions

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Stages of 3x3 convolutions with 2x2 max-pooling after each, then fully connected layers.

    Args:
        input_shape: (channels, height, width) of one image. Pooling stops when the image is one pixel wide.
        classes: number of outputs.
        stages: channels of the convolutions of each stage.
        head: widths of the fully connected layers before the last.
        batch_norm: BatchNorm after every convolution, which then has no bias.
        dropout: probability of dropping a hidden neuron of the head in training.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        stages: Sequence[Sequence[int]] = STAGES,
        head: Sequence[int] = (4096, 4096),
        batch_norm: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        inputs, height, width = input_shape
        layers: list[nn.Module] = []
        for stage in stages:
            for outputs in stage:
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
                inputs = outputs
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.features = nn.Sequential(*layers)
        height, width = min(height, 7), min(width, 7)
        self.pool = nn.AdaptiveAvgPool2d((height, width))
        inputs *= height * width
        hidden: list[nn.Module] = []
        for outputs in head:
            hidden += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
            inputs = outputs
        self.head = nn.Sequential(*hidden)
        self.classifier = nn.Linear(inputs, classes)
        draw_convolutions(self)
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, channels, height, width] -> logits[batch, classes]."""
        return self.classifier(self.head(self.pool(self.features(x)).flatten(1)))


def vgg16(
    input_shape: Sequence[int], classes: int, *, batch_norm: bool = True, head: Sequence[int] | None = None
) -> VGG:
    """VGG-16; under 64 pixels the two layers of 4096 become one of 512, as is usual on CIFAR, unless `head` says.

    >>> import gossamer as gs
    >>> sum(p.numel() for p in gs.models.vgg16((3, 224, 224), 1000, batch_norm=False).parameters())
    138357544
    """
    if head is None:
        head = (4096, 4096) if min(input_shape[1:]) >= 64 else (512,)
    return VGG(input_shape, classes, head=head, batch_norm=batch_norm)


def vgg16_plain(input_shape: Sequence[int], classes: int, *, head: Sequence[int] | None = None) -> VGG:
    """VGG-16 as published, without BatchNorm: every convolution has a bias and is followed by its ReLU at once.

    >>> import gossamer as gs
    >>> net = gs.models.vgg16_plain((3, 32, 32), 10)
    >>> [type(layer).__name__ for layer in net.features[:3]]
    ['Conv2d', 'ReLU', 'Conv2d']
    """
    return vgg16(input_shape, classes, batch_norm=False, head=head)

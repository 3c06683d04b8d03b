"""A multilayer perceptron: flatten, then Linear and ReLU for every hidden width, then one Linear to the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class MLP(nn.Module):
    """Perceptron over inputs of any shape.

    Args:
        input_shape: shape of one example, without the batch axis.
        classes: number of outputs.
        widths: neurons of each hidden layer.

    >>> import torch, gossamer as gs
    >>> gs.models.MLP((1, 8, 8), 10, widths=(32,))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int], classes: int, *, widths: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(input_shape)
        for width in widths:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[batch, *input_shape] -> logits[batch, classes]."""
        return self.classifier(self.hidden(x))

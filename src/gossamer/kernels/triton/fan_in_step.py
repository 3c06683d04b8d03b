"""One training step of a classifier with constant fan-in: tiles of labels made dense, for the tensor cores.

On tensor cores a dense product of a tile costs no more than gathering does, from about 40 inputs of 768 on. So a tile
of the weights is scattered, multiplied by torch's own products, and its gradient is read where the values lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.kernels.reference.fan_in_step import Gathered, in_blocks


class Densified(Gathered):
    """A block of labels as a dense tile, in float32."""

    elements = 24 << 18  # of a tile: 24 MiB, which the L2 of a large GPU holds

    def __init__(self, x: Tensor) -> None:
        self.xt = x.t()

    @staticmethod
    def width(batch: int, cols: int, k: int) -> int:
        return cols

    def logits(self, w: Tensor, columns: Tensor) -> Tensor:
        self.columns = columns
        self.w = w.new_zeros((len(w), self.xt.shape[0]), dtype=torch.float32).scatter_add_(1, columns, w.float())
        return self.w @ self.xt

    def gradients(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return self.w.t() @ g, (g @ self.xt.t()).gather(1, self.columns)


def fan_in_step(*args: Any) -> tuple[Tensor, Tensor]:
    """See `gossamer.kernels.reference.fan_in_step`."""
    return in_blocks(Densified, *args)

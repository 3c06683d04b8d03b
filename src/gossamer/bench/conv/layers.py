"""The layers that are measured, and operands with zeros: drawn independently, or as a ReLU leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.bench.section import Settings

ZEROS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.95)


@dataclass(frozen=True)
class Layer:
    """A convolution of square images of `side` pixels, padded so that stride 1 keeps their size."""

    inputs: int
    outputs: int
    side: int
    kernel: int
    stride: int = 1

    @property
    def name(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel} {self.inputs}->{self.outputs} {self.side}²{stride}"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def out_side(self) -> int:
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    def weight(self) -> Tensor:
        """float32[outputs, inputs, kernel, kernel], contiguous."""
        generator = torch.Generator().manual_seed(3)
        return torch.randn(self.outputs, self.inputs, self.kernel, self.kernel, generator=generator) / 32


LAYERS = (
    *(Layer(c, c, side, 3) for c, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
    Layer(256, 64, 56, 1),
    Layer(64, 256, 56, 1),
    Layer(1024, 256, 14, 1),
    Layer(128, 128, 56, 3, 2),
)
TOY = (Layer(32, 32, 7, 3), Layer(64, 32, 7, 1))


def chosen(settings: Settings) -> tuple[Layer, ...]:
    """The layers that these settings ask for."""
    return TOY if settings.quick else LAYERS


def spread(mean: float, channels: int, generator: torch.Generator) -> Tensor:
    """float32[channels], shares with this mean that differ from channel to channel by 1 in the logit (deviation)."""
    if mean in (0.0, 1.0):
        return torch.full((channels,), mean)
    off = torch.randn(channels, generator=generator)
    low, high = -20.0, 20.0
    for _ in range(40):  # the mean grows with the shift: bisect
        shift = (low + high) / 2
        low, high = (shift, high) if torch.sigmoid(off + shift).mean() < mean else (low, shift)
    return torch.sigmoid(off + shift)


def keep_mask(batch: int, channels: int, side: int, zeros: float, masks: str, generator: torch.Generator) -> Tensor:
    """bool[batch, channels, side, side] with this share of zeros.

    "random" is independent of everything. "uneven" is as after a ReLU: channels differ, and neighbouring pixels agree
    more than others.
    """
    shape = (batch, channels, side, side)
    if masks == "random":
        return torch.rand(shape, generator=generator) >= zeros
    field = F.avg_pool2d(torch.randn(shape, generator=generator), 3, 1, 1)
    flat = field.transpose(0, 1).flatten(1).sort(1).values
    share = spread(zeros, channels, generator)
    place = (share * flat.shape[1]).round().long().clamp(max=flat.shape[1])
    padded = F.pad(flat, (0, 1), value=float("inf"))  # a share of 1: above everything
    return field >= padded.gather(1, place.unsqueeze(1)).view(1, channels, 1, 1)


def operand(batch: int, channels: int, side: int, zeros: float, masks: str, seed: int) -> Tensor:
    """float32[batch, channels, side, side] in channels_last."""
    generator = torch.Generator().manual_seed(seed)
    keep = keep_mask(batch, channels, side, zeros, masks, generator)
    values = torch.randn(keep.shape, generator=generator)
    return (values * keep).contiguous(memory_format=torch.channels_last)

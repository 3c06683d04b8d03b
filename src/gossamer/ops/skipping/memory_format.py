"""Images in another order of memory: torch copies element by element, above 32 MiB into new pages; ours is faster."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.ops.registration import load_kernel

LAST = torch.channels_last
LEAST = 1 << 16
"""Elements from which on a call of our own kernel is made up for."""


def in_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """x[N, C, H, W] in `torch.contiguous_format` or `torch.channels_last`: itself, or a new tensor.

    >>> in_format(torch.ones(2, 3, 4, 5), LAST).stride()
    (60, 1, 15, 3)
    """
    if x.is_contiguous(memory_format=memory_format):
        return x
    ours = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST
    if not ours or not x.is_contiguous(memory_format=torch.contiguous_format if memory_format == LAST else LAST):
        return x.contiguous(memory_format=memory_format)
    images, channels, height, width = x.shape
    reorder = load_kernel("cpu", "reorder", "reorder")
    if memory_format == LAST:
        pixels = reorder(x.view(images, channels, height * width))
        return owned(pixels, pixels.view(images, height, width, channels).permute(0, 3, 1, 2))
    planes = reorder(x.permute(0, 2, 3, 1).view(images, height * width, channels))
    return owned(planes, planes.view(x.shape))


def owned(new: Tensor, view: Tensor) -> Tensor:
    """A new tensor in the form of a view of all of it: autograd refuses in-place operators on a view that a custom
    function returns."""
    return new.as_strided_(view.shape, view.stride())

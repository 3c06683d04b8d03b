"""Narrow numbers for inference: bfloat16, or int8 with one scale per tile. Products convert them on the way."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Storage = Literal["float32", "bfloat16", "int8"]


def check_storage(storage: str) -> None:
    if storage not in get_args(Storage):
        raise ValueError(f"storage must be one of {list(get_args(Storage))}, got {storage!r}")


def quantize(values: Tensor, storage: Storage) -> tuple[Tensor, Tensor | None]:
    """values[capacity, bm, bn] -> (narrow values, scale float32[capacity] or None).

    int8 is symmetric: scale = max |tile| / 127, so an element is off by at most half a scale.

    >>> quantize(torch.tensor([[[127.0, -1.4]]]), "int8")
    (tensor([[[127,  -1]]], dtype=torch.int8), tensor([1.]))
    """
    if storage == "bfloat16":
        return values.to(torch.bfloat16), None
    scale = values.abs().amax((1, 2)).float() / 127
    steps = values.float() / torch.where(scale > 0, scale, 1).view(-1, 1, 1)
    return steps.round().to(torch.int8), scale


def dequantize(values: Tensor, scale: Tensor | None) -> Tensor:
    """The numbers that `quantize` stands for; float32 from narrow types."""
    if scale is None:
        return values.float() if values.dtype == torch.bfloat16 else values
    return values.float() * scale.view(-1, 1, 1)

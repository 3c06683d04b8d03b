"""What every op refuses of its tensors together: two devices, and layouts that no kernel reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gossamer.ops.mutation import tensors_of

OTHER_LAYOUTS = ("SparseCPU", "SparseCsrCPU", "MkldnnCPU", "SparseCUDA", "SparseCsrCUDA")
"""Where torch's dispatcher sends a call one of whose tensors is not strided."""


def _named(names: tuple[str, ...], args: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    for name, arg in zip(names, args, strict=False):
        several = isinstance(arg, (list, tuple))
        for at, x in enumerate(tensors_of(arg)):
            yield f"{name}[{at}]" if several else name, x


def check_devices(names: tuple[str, ...], args: tuple[Any, ...]) -> None:
    """Refuse tensors on two devices; as in torch, a number of the CPU (no dimension) goes with all."""
    first = ""
    device: torch.device | None = None
    for name, x in _named(names, args):
        if x.dim() == 0 and x.device.type == "cpu":
            continue
        if device is None:
            first, device = name, x.device
        elif x.device != device:
            raise ValueError(f"{name} must be on the device of {first}, {device}, got {x.device}")


def refuse_layouts(names: tuple[str, ...], args: tuple[Any, ...]) -> None:
    """Refuse tensors that are not strided."""
    for name, x in _named(names, args):
        if x.layout is not torch.strided:
            raise TypeError(f"{name} must be a strided (dense) tensor, got layout {x.layout}")

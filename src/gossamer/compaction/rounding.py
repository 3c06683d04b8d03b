"""Widths the hardware likes: keep a few dead channels rather than end on a width that runs slower."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .capture import state_tensors
from .graph import ChannelGroup


def preferred_multiple(device: torch.device) -> int:
    """16 where a vector register holds 16 floats (AVX-512) and for CUDA tensor cores, 8 elsewhere."""
    if device.type == "cuda":
        return 16
    try:
        from gossamer import _native

        isa = str(_native.isa())
    except ImportError:
        isa = torch.backends.cpu.get_cpu_capability()
    return 16 if "avx512" in isa.lower().replace("_", "").replace("-", "") else 8


def rounded(group: ChannelGroup, stay: Tensor, multiple: int, model: nn.Module) -> Tensor:
    """`stay` with enough channels added back that every axis of the group keeps a multiple of `multiple` positions.

    The channels added are those with the largest weights (mean magnitude over the writers), ties to the lower number.
    """
    width = math.gcd(*(member.index.shape[1] for member in group.members))
    step = multiple // math.gcd(multiple, width)
    count = int(stay.sum())
    target = min(group.channels, math.ceil(count / step) * step)
    if target == count:
        return stay
    state = state_tensors(model)
    size = torch.zeros(group.channels, dtype=torch.float64)
    for member in group.members:
        if member.role == "writer":
            sizes = state[member.tensor].detach().cpu().double().abs().movedim(member.axis, 0)
            rows = sizes.reshape(len(sizes), -1).mean(1)  # a bias has one axis only
            size += rows[member.index].mean(1)
    size[stay] = -1.0
    order = torch.sort(size, descending=True, stable=True).indices
    out = stay.clone()
    out[order[: target - count]] = True
    return out

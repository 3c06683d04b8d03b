"""Widths the hardware likes: keep a few dead channels rather than end on a width that runs slower."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .graph import ChannelGroup
from .names import state_tensors


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


def step(group: ChannelGroup, multiple: int) -> int:
    """Channels of `group` that make its widths multiples of `multiple` positions; fewer in a narrow group.

    A channel counts as the positions it owns: heads of 32 give widths of whole vectors one by one. In a group narrower
    than two steps nothing could go: its step is halved until half of its channels can. (Half a register of AVX-512 is
    one of AVX2: 8 channels of 16 take about 0.6 of the time of 16, and 12 take as long as 16.)

    >>> import torch
    >>> from gossamer.compaction import ChannelGroup, Member
    >>> def group(channels, positions):
    ...     rows = torch.arange(channels * positions).view(channels, positions)
    ...     return ChannelGroup("g", channels, (Member("w", 0, "writer", rows),), "inner", None, positions)
    >>> step(group(64, 1), 16), step(group(12, 8), 16), step(group(4, 32), 16), step(group(16, 1), 16)
    (16, 2, 1, 8)
    """
    width = math.gcd(*(member.index.shape[1] for member in group.members))
    found = multiple // math.gcd(multiple, width)
    while found > 1 and 2 * found > group.channels:
        found //= 2
    return found


def rounded(group: ChannelGroup, stay: Tensor, size: int, model: nn.Module) -> Tensor:
    """`stay` with enough channels added back that the width is a multiple of `size` (see `step`).

    The channels added are those with the largest weights (mean magnitude over the writers), ties to the lower number.
    """
    count = int(stay.sum())
    target = min(group.channels, math.ceil(count / size) * size)
    if target == count:
        return stay
    state = state_tensors(model)
    weight = torch.zeros(group.channels, dtype=torch.float64, device="cpu")
    for member in group.members:
        if member.role == "writer":
            sizes = state[member.tensor].detach().cpu().double().abs().movedim(member.axis, 0)
            rows = sizes.reshape(len(sizes), -1).mean(1)  # a bias has one axis only
            weight += rows[member.index].mean(1)
    weight[stay] = -1.0
    order = torch.sort(weight, descending=True, stable=True).indices
    out = stay.clone()
    out[order[: target - count]] = True
    return out

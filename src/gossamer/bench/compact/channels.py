"""Which channels go where their number alone matters, and what tables say of networks that lost some."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import gossamer as gs
from gossamer.bench.cells import Cell, Column, ratio

DENSE, COMPACT = "dense", "compact"
ROUND = 16  # channels: a full AVX-512 register of fp32, and what tensor cores want in bf16

CONTROL: Column = ("A/A", ratio(f"{DENSE} (control)"))


def flops(name: str) -> Cell:
    """FLOPs over those of the dense network."""

    def cell(row: dict[str, Any]) -> str:
        counts = row["counts"]
        return f"{counts[name]['flops'] / counts[DENSE]['flops']:.2f}" if name in counts else ""

    return cell


def lowest_channels(
    graph: gs.compaction.ChannelGraph, model: nn.Module, fraction: float, *, round_to: int = ROUND
) -> dict[str, torch.Tensor]:
    """Keep masks that drop about `fraction` of every removable group, smallest weights first.

    Widths go to the nearest multiple of `round_to`, up or down, so that the share removed overall stays near
    `fraction`; `share_removed` says what it came to.
    """
    tensors = dict(model.named_parameters())
    keep = {}
    for group in graph.removable:
        size = torch.zeros(group.channels)
        for member in group.members:
            if member.role == "writer" and member.tensor in tensors:
                weight = tensors[member.tensor].detach().movedim(member.axis, 0)
                size += weight.reshape(len(weight), -1).abs().sum(1)[member.index].sum(1)
        multiple = max(1, round_to // group.unit)
        left = max(multiple, round(group.channels * (1 - fraction) / multiple) * multiple)
        alive = torch.ones(group.channels, dtype=torch.bool)
        alive[torch.argsort(size, stable=True)[: max(0, group.channels - left)]] = False
        keep[group.name] = alive
    return keep


def share_removed(keep: dict[str, torch.Tensor]) -> float:
    """Channels removed over channels there were."""
    return 1 - sum(int(alive.sum()) for alive in keep.values()) / sum(alive.numel() for alive in keep.values())

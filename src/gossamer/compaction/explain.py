"""Receipts in plain text: what removing a channel of each group takes with it, and why other channels stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .verdict import told

if TYPE_CHECKING:
    from .compact import Compact
    from .graph import ChannelGraph, ChannelGroup, Member

_VERBS = {"writer": "made by", "reader": "read by", "affine": "scaled by", "stat": "counted in"}


def _line(member: Member) -> str:
    each = member.index.shape[1]
    size = f", {each} positions a channel" if each > 1 else ""
    return f"    {_VERBS[member.role]:10s} {member.tensor} axis {member.axis}{size}"


def explain_group(group: ChannelGroup) -> str:
    """The tensor axes one group touches; a frozen group adds its reason."""
    head = f"{group.name}: {group.channels} channels, {group.kind}"
    if group.frozen is not None:
        head += f", stays: {group.frozen}"
    return "\n".join([head, *[_line(member) for member in group.members]])


def explain_graph(graph: ChannelGraph) -> str:
    """Removable groups first, then the frozen ones."""
    groups = sorted(graph.groups, key=lambda group: group.frozen is not None)
    return "\n".join(explain_group(group) for group in groups)


def _numbers(mask: Tensor) -> str:
    numbers = mask.nonzero().flatten().tolist()
    return str(numbers) if len(numbers) <= 12 else f"[{', '.join(map(str, numbers[:12]))}, ... {len(numbers)} in all]"


def _removed(group: ChannelGroup, keep: Tensor) -> list[str]:
    gone = ~keep
    lines = [f"{group.name}: {group.channels} -> {int(keep.sum())} channels, {group.kind}, removed {_numbers(gone)}"]
    for member in group.members:
        each = member.index.shape[1]
        lost, size = int(gone.sum()) * each, member.index.numel()
        lines.append(f"    {_VERBS[member.role]:10s} {member.tensor} axis {member.axis} loses {lost} of {size}")
    return lines


def _stays(result: Compact, group: ChannelGroup) -> list[str]:
    """Why dead or constant channels of a group are still there."""
    keep = result.keep.get(group.name, torch.ones(group.channels, dtype=torch.bool))
    lines = []
    spare = keep & result.dead.get(group.name, torch.zeros_like(keep))
    if group.name in result.unfit:
        lines.append(f"    stay: {result.unfit[group.name]}")
    elif bool(spare.any()) and result.refused is None:
        lines.append(f"    {_numbers(spare)} are dead but stay, for a width the hardware likes or by request")
    constants = result.constants.get(group.name)
    if constants is not None:
        held = keep & ~constants.isnan()
        maker = "BatchNorm" if any(member.role == "stat" for member in group.members) else "a bias"
        for channel in held.nonzero().flatten().tolist()[:4]:
            lines.append(f"    {channel} stays: {maker} leaves the constant {constants[channel].item():.3g}")
    return lines


def explain_compact(result: Compact) -> str:
    """Groups that shrank, groups that could have, groups that cannot."""
    lines = []
    report = result.report
    if result.refused is not None:
        lines.append(f"nothing removed: {result.refused}")
    elif report["latency"] is not None and report["latency"]["verdict"] == "inconclusive":
        lines.append(f"no faster that could be told: {told(report['latency'])}")
    for name in ("parameters", "flops"):
        lines.append(f"{name}: {report[name]['before']:,} -> {report[name]['after']:,}")
    groups = result.graph.groups
    for group in groups:
        if group.name in result.keep:
            lines += [*_removed(group, result.keep[group.name]), *_stays(result, group)]
    for group in groups:
        if group.frozen is None and group.name not in result.keep:
            lines += [f"{group.name}: {group.channels} channels, {group.kind}, none removed", *_stays(result, group)]
    lines += [f"{group.name}: {group.channels} channels stay: {group.frozen}" for group in groups if group.frozen]
    return "\n".join(lines)

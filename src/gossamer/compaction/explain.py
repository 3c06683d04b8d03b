"""Receipts in plain text: what removing a channel of each group would take with it, and why other groups stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

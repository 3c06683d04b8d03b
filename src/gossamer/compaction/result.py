"""What `compact` returns, and its receipt in plain text: what each removed channel took along, why others stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .graph import ChannelGraph, ChannelGroup
from .rewrite import Kept
from .store import save
from .verdict import told


@dataclass
class Compact:
    """A compacted model and how it came about.

    model: the smaller model, without wrappers (an unchanged copy when `refused`). optimizer: its optimizer, if one was
    given. kept: {tensor: {axis: kept positions}}. refused: why nothing was removed, or None when something was.
    report: plain numbers, ready for JSON: "parameters", "bytes", "flops" and per group "channels", each with
    "before" and "after"; "error" = the largest relative difference of the outputs; "latency" = the comparison made,
    with its "verdict": "faster", "slower" (then `refused` says so) or "inconclusive"; "inputs" = what the FLOPs are of.
    """

    model: nn.Module
    kept: Kept
    report: dict[str, Any]
    optimizer: torch.optim.Optimizer | None
    refused: str | None
    graph: ChannelGraph = field(repr=False)
    keep: dict[str, Tensor] = field(repr=False)
    dead: dict[str, Tensor] = field(repr=False)
    constants: dict[str, Tensor] = field(repr=False)
    unfit: dict[str, str] = field(repr=False)

    def explain(self) -> str:
        """What each group lost and why the rest stays."""
        return _explained(self)

    def save(self, directory: str | Path) -> Path:
        """Write the model (safetensors) and its shapes (JSON) into `directory`; read back by `load_compact`.

        A compact model that is there is replaced, anything else is not.

        Raises:
            NotADirectoryError: `directory` is no folder. FileExistsError: its compact.json is of something else.
            ValueError, OSError: it cannot be written. ImportError: safetensors is not installed.
        """
        return save(self.model, directory)


def numbered(mask: Tensor) -> str:
    """Which entries are True, in words."""
    numbers = mask.nonzero().flatten().tolist()
    return str(numbers) if len(numbers) <= 12 else f"[{', '.join(map(str, numbers[:12]))}, ... {len(numbers)} in all]"


def _removed(group: ChannelGroup, keep: Tensor) -> list[str]:
    gone = ~keep
    lines = [f"{group.name}: {group.channels} -> {int(keep.sum())} channels, {group.kind}, removed {numbered(gone)}"]
    for member in group.members:
        each = member.index.shape[1]
        lost, size = int(gone.sum()) * each, member.index.numel()
        lines.append(f"{member} loses {lost} of {size}")
    return lines


def _stays(result: Compact, group: ChannelGroup) -> list[str]:
    """Why dead or constant channels of a group are still there."""
    keep = result.keep.get(group.name, torch.ones(group.channels, dtype=torch.bool, device="cpu"))
    lines = []
    spare = keep & result.dead.get(group.name, torch.zeros_like(keep))
    if group.name in result.unfit:
        lines.append(f"    stay: {result.unfit[group.name]}")
    elif bool(spare.any()) and result.refused is None:
        lines.append(f"    {numbered(spare)} are dead but stay, for a width the hardware likes or by request")
    constants = result.constants.get(group.name)
    if constants is not None:
        held = keep & ~constants.isnan()
        maker = "BatchNorm" if any(member.role == "stat" for member in group.members) else "a bias"
        for channel in held.nonzero().flatten().tolist()[:4]:
            lines.append(f"    {channel} stays: {maker} leaves the constant {constants[channel].item():.3g}")
    return lines


def _explained(result: Compact) -> str:
    """Groups that shrank, groups that could have, groups that cannot."""
    lines = []
    report = result.report
    if result.refused is not None:
        lines.append(f"nothing removed: {result.refused}")
    elif report["latency"] is not None:
        faster = report["latency"]["verdict"] == "faster"
        lines.append(f"{'faster' if faster else 'no faster that could be told'}: {told(report['latency'])}")
    # Those of one forward, which grow with the batch; what was compacted by an older version does not say of which.
    of = f" of one forward on {report['inputs']}" if report.get("inputs") else ""
    for name, what in (("parameters", "parameters"), ("flops", f"FLOPs{of}, 2 for each multiply-add")):
        lines.append(f"{what}: {report[name]['before']:,} -> {report[name]['after']:,}")
    groups = result.graph.groups
    for group in groups:
        if group.name in result.keep:
            lines += [*_removed(group, result.keep[group.name]), *_stays(result, group)]
    for group in groups:
        if group.frozen is None and group.name not in result.keep:
            lines += [f"{group}, none removed", *_stays(result, group)]
    lines += [f"{group.name}: {group.channels} channels stay: {group.frozen}" for group in groups if group.frozen]
    return "\n".join(lines)

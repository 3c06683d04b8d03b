"""The channel graph of a model: which slices of which tensors make, carry and consume each channel.

`ChannelGraph.build(model, example_inputs)` captures the model, labels every tensor axis and collects the labels into
groups. Removing channel c of a group removes the positions `index[c]` of every member tensor along its axis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor, nn

from .capture import Capture, capture, state_tensors
from .rules import Flow, propagate

Key = tuple[str, int]


@dataclass(frozen=True)
class Member:
    """One tensor axis of a group. `index[c]` = positions along `axis` that channel c owns, LongTensor [channels, k]."""

    tensor: str
    axis: int
    role: str
    index: LongTensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that touch the same tensor axes.

    kind: "inner" (one path), "residual" (writers joined by an addition) or "heads" (attention heads).
    frozen: why none of these channels can be removed; None = removable.
    unit: elements one channel owns on its widest axis (head size, width of a convolution group, H*W of a flatten).
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    kind: str
    frozen: str | None
    unit: int


@dataclass(frozen=True)
class ChannelGraph:
    """All channel groups of a model, built for the shapes of one example input."""

    groups: tuple[ChannelGroup, ...]
    example_inputs: Any
    route: str
    flow: Flow = field(repr=False)
    roots: tuple[np.ndarray, ...] = field(repr=False)  # label root of every channel of every group

    @classmethod
    def build(cls, model: nn.Module, example_inputs: Any, route: str = "auto") -> ChannelGraph:
        """Trace `model` (eval mode, flags restored, weights untouched) and label its channels.

        Args:
            model: any module that traces without branching on tensor values.
            example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
            route: "export", "fx", or "auto" (export, then fx).

        Raises:
            CaptureError: the model cannot be traced; the message names the cause of every route.

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = ChannelGraph.build(net, torch.zeros(1, 4))
        >>> [(group.name, group.channels) for group in graph.removable]
        [('0', 8)]
        >>> [(member.tensor, member.axis, member.role) for member in graph.removable[0].members]
        [('0.weight', 0, 'writer'), ('0.bias', 0, 'writer'), ('2.weight', 1, 'reader')]
        """
        captured = capture(model, example_inputs, route=route)
        return cls.from_flow(model, propagate(captured), example_inputs)

    @classmethod
    def from_flow(
        cls, model: nn.Module, flow: Flow, example_inputs: Any, frozen: dict[str, str] | None = None
    ) -> ChannelGraph:
        """Collect the labels of `flow` into groups; `frozen` adds reasons for groups found unshrinkable later."""
        state = state_tensors(model)
        _freeze_shared_storage(flow, state)
        _freeze_packed_attention(flow, model)
        groups, roots = _collect(flow, state, frozen or {})
        return cls(groups, example_inputs, flow.capture.route, flow, roots)

    @property
    def removable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose channels may be removed."""
        return tuple(group for group in self.groups if group.frozen is None)

    def group(self, name: str) -> ChannelGroup:
        """The group called `name`; KeyError names the groups there are."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no channel group named {name!r}; groups are {[group.name for group in self.groups]}")

    def explain(self) -> str:
        """A receipt: every group with the tensor axes it touches, and why the frozen ones stay."""
        from .explain import explain_graph

        return explain_graph(self)


def _freeze_shared_storage(flow: Flow, state: dict[str, Tensor]) -> None:
    """Two parameters over the same memory would drift apart when one is replaced by a slice."""
    seen: dict[int, str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        other = seen.setdefault(tensor.data_ptr(), name)
        if other != name:
            for (owner, _), labels in flow.state.items():
                if owner in (name, other):
                    flow.labels.freeze(labels, f"{name} shares its memory with {other}")


def _freeze_packed_attention(flow: Flow, model: nn.Module) -> None:
    """nn.MultiheadAttention computes head_size = embed_dim / heads: it cannot run with fewer heads."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            prefix = f"{path}." if path else ""
            reason = "nn.MultiheadAttention needs embed_dim = heads x head size"
            for (owner, _), labels in flow.state.items():
                if owner.startswith(prefix):
                    flow.labels.freeze(labels, reason)


def _first_use(capture: Capture) -> dict[str, int]:
    order = {node: place for place, node in enumerate(capture.graph.nodes)}
    first: dict[str, int] = {}
    for node, name in capture.tensors.items():
        if node.users:
            place = min(order[user] for user in node.users)
            first[name] = min(first.get(name, place), place)
    return first


def _reasons(flow: Flow) -> dict[int, str]:
    """Frozen roots with the first reason given; a spoken reason beats a quiet one."""
    reasons: dict[int, str] = {}
    for labels, reason in flow.labels.frozen:
        for root in np.unique(flow.labels.find(labels)).tolist():
            if not reasons.get(root):
                reasons[root] = reason
    return reasons


def _collect(
    flow: Flow, state: dict[str, Tensor], frozen: dict[str, str]
) -> tuple[tuple[ChannelGroup, ...], tuple[np.ndarray, ...]]:
    first = _first_use(flow.capture)
    reasons = _reasons(flow)
    keys = sorted(
        (key for key, labels in flow.state.items() if key[0] in first and len(labels) > 1),
        key=lambda key: (first[key[0]], list(state).index(key[0]), key[1]),
    )
    roots = {key: flow.labels.find(flow.state[key]) for key in keys}
    marked = {
        kind: set(np.unique(flow.labels.find(np.concatenate(axes))).tolist()) if axes else set()
        for kind, axes in flow.labels.marks.items()
    }
    signature: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, key in enumerate(keys):
        values, counts = np.unique(roots[key], return_counts=True)
        for root, count in zip(values.tolist(), counts.tolist(), strict=True):
            if reasons.get(root) != "":
                signature[root].append((number, count))
    gathered: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for root, axes in signature.items():
        kind = "heads" if root in marked["heads"] else "residual" if root in marked["residual"] else "inner"
        gathered[(tuple(axes), reasons.get(root), kind)].append(root)

    groups: list[ChannelGroup] = []
    group_roots: list[np.ndarray] = []
    names: dict[str, int] = {}
    # Removable groups come first and so get the plain names.
    for (axes, reason, kind), members in sorted(
        gathered.items(), key=lambda item: (item[0][1] is not None, item[0][0])
    ):
        made = [_member(keys[number], roots[keys[number]], count, members, flow, state) for number, count in axes]
        order = np.argsort(made[0].index[:, 0].numpy(), kind="stable")  # channels in the order of the first member
        arranged = tuple(Member(m.tensor, m.axis, m.role, m.index[torch.from_numpy(order)]) for m in made)  # type: ignore[arg-type]
        name = _name(arranged, names)
        if reason is None and len(members) == 1:
            reason = "all positions are tied into one channel, and one always stays"
        reason = frozen.get(name, reason)
        unit = max(member.index.shape[1] for member in arranged)
        group_roots.append(np.asarray(members, dtype=np.int64)[order])
        groups.append(ChannelGroup(name, len(members), arranged, kind, reason, unit))
    return tuple(groups), tuple(group_roots)


def _member(
    key: Key, roots: np.ndarray, count: int, channels: list[int], flow: Flow, state: dict[str, Tensor]
) -> Member:
    """Positions of each channel along one axis, [channels, count], ascending."""
    order = np.argsort(roots, kind="stable")
    ordered = roots[order]
    starts = np.searchsorted(ordered, np.asarray(channels))
    index = order[starts[:, None] + np.arange(count)]
    is_parameter = isinstance(state[key[0]], nn.Parameter)
    role = flow.roles.get(key, "writer") if is_parameter else "stat"
    return Member(key[0], key[1], role, torch.from_numpy(index))  # type: ignore[arg-type]


def _name(members: tuple[Member, ...], names: dict[str, int]) -> str:
    """The module of the first writer; further groups of the same module are numbered."""
    writer = next((m for m in members if m.role == "writer"), None)
    tensor = writer.tensor if writer is not None else members[0].tensor
    base = tensor.partition(".parametrizations.")[0] if ".parametrizations." in tensor else tensor.rpartition(".")[0]
    base = base or tensor
    base = base if writer is not None else f"input of {base}"
    names[base] = names.get(base, 0) + 1
    return base if names[base] == 1 else f"{base}#{names[base]}"

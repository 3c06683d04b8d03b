"""The channel graph of a model: which slices of which tensors make, carry and consume each channel.

`ChannelGraph.build(model, example_inputs)` captures the model, labels every tensor axis and collects the labels into
groups. Removing channel c of a group removes the positions `index[c]` of every member tensor along its axis.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import LongTensor, Tensor, nn

from gossamer.wrappers import plain_name, plain_names, unwrap

from .borrow import is_half, ordinary, single
from .capture import capture
from .captured import Capture, CaptureError
from .names import state_tensors
from .rules import Flow, propagate

logger = logging.getLogger(__name__)

Key = tuple[str, int]
KINDS = ("inner", "residual", "heads")
_VERBS = {"writer": "made by", "reader": "read by", "affine": "scaled by", "stat": "counted in"}


@dataclass(frozen=True)
class Member:
    """One tensor axis of a group. `index[c]` = positions along `axis` that channel c owns, LongTensor [channels, k]."""

    tensor: str
    axis: int
    role: str
    index: LongTensor

    def __str__(self) -> str:
        return f"    {_VERBS[self.role]:10s} {self.tensor} axis {self.axis}"


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

    def explain(self) -> str:
        """The tensor axes the group touches; a frozen one adds its reason."""
        lines = [f"{self}, stays: {self.frozen}" if self.frozen is not None else str(self)]
        for member in self.members:
            each = member.index.shape[1]
            lines.append(f"{member}, {each} positions a channel" if each > 1 else str(member))
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.name}: {self.channels} channels, {self.kind}"


@dataclass(frozen=True)
class ChannelGraph:
    """All channel groups of a model, built for the shapes of one example input."""

    groups: tuple[ChannelGroup, ...]
    example_inputs: Any
    route: str
    flow: Flow = field(repr=False)
    roots: tuple[np.ndarray, ...] = field(repr=False)  # label root of every channel of every group

    @classmethod
    @torch.inference_mode(False)
    def build(cls, model: nn.Module, example_inputs: Any, route: str = "auto") -> ChannelGraph:
        """Trace `model` (eval mode, flags restored, weights untouched) and label its channels.

        Args:
            model: any module that traces without branching on tensor values, in any number of wrappers.
            example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
            route: "export", "fx", or "auto" (export; fx where that fails, and where fx takes apart an operator without
                a rule, such as a recurrent layer, so that more can shrink).

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
        model, example_inputs = unwrap(model), ordinary(example_inputs)
        example_inputs = example_inputs if is_half(model) else single(example_inputs)
        graph = cls._by(model, example_inputs, route)
        if route == "auto" and graph.route == "export" and graph.flow.composite:
            try:
                other = cls._by(model, example_inputs, "fx", graph.flow.capture.watches)
            except CaptureError as error:
                logger.debug("operators without a rule are not taken apart: %s", error)
            else:
                return max(graph, other, key=lambda found: sum(group.channels for group in found.removable))
        return graph

    @classmethod
    def _by(
        cls, model: nn.Module, example_inputs: Any, route: str, watches: Mapping[int, bool] | None = None
    ) -> ChannelGraph:
        found = capture(model, example_inputs, route=route, watches=watches)
        return cls.from_flow(model, propagate(found), example_inputs)

    @classmethod
    def from_flow(
        cls, model: nn.Module, flow: Flow, example_inputs: Any, frozen: dict[str, str] | None = None
    ) -> ChannelGraph:
        """Collect the labels of `flow` into groups; `frozen` adds reasons for groups found unshrinkable later."""
        state = state_tensors(model)
        _freeze_shared_storage(flow, state)
        _freeze_inflexible(flow, model)
        groups, roots = _collect(flow, state, frozen or {}, plain_names(model))
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
        """A receipt: removable groups with the tensor axes they touch, then the frozen ones and why they stay."""
        groups = sorted(self.groups, key=lambda group: group.frozen is not None)
        return "\n".join(group.explain() for group in groups)


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


def _freeze_inflexible(flow: Flow, model: nn.Module) -> None:
    """Layers of PyTorch with one attribute for several widths, which therefore cannot change one by one."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            own, reason = "", "nn.MultiheadAttention needs embed_dim = heads x head size"
        elif isinstance(module, nn.RNNBase) and (module.num_layers > 1 or module.bidirectional or module.proj_size):
            parts = {f"{module.num_layers} layers": module.num_layers > 1, "2 directions": module.bidirectional,
                     "a projection": module.proj_size > 0}  # fmt: skip
            own = "weight_hh"  # the rows of every gate, and with them all that the state meets
            shared = " and ".join(part for part, there in parts.items() if there)
            reason = f"nn.{type(module).__name__} has one hidden_size for {shared}"
        else:
            continue
        prefix = f"{path}." if path else ""
        for (owner, _), labels in flow.state.items():
            if owner.startswith(prefix + own):
                flow.labels.freeze(labels, reason)


def _first_use(capture: Capture) -> dict[str, int]:
    order = {node: place for place, node in enumerate(capture.graph.nodes)}
    first: dict[str, int] = {}
    for node, name in capture.tensors.items():
        if node.users:
            place = min(order[user] for user in node.users)
            first[name] = min(first.get(name, place), place)
    return first


def _classes(flow: Flow, keys: list[Key]) -> tuple[np.ndarray, list[tuple[str | None, str]]]:
    """A class number for every label root (-1: not a channel): equal classes touch the same axes equally often.

    Also returns (why it is frozen or None, kind) of every class.
    """
    count = flow.labels.count
    reasons: list[str | None] = [None]
    reason = np.zeros(count, dtype=np.int64)  # 0 = none, -1 = not a channel axis, else an index into reasons
    for labels, text in flow.labels.frozen:
        roots = np.unique(flow.labels.find(labels))
        if text:  # the first spoken reason stays; a spoken one beats silence
            reason[roots[reason[roots] <= 0]] = len(reasons)
            reasons.append(text)
        else:
            reason[roots[reason[roots] == 0]] = -1
    kind = np.zeros(count, dtype=np.int64)
    for number, name in enumerate(KINDS[1:], start=1):
        for labels in flow.labels.marks[name]:
            kind[flow.labels.find(labels)] = number
    texts = {text: number for number, text in enumerate(dict.fromkeys(reasons))}
    reason = np.where(reason < 0, -1, np.array([texts[text] for text in reasons])[np.maximum(reason, 0)])
    classes = np.where(reason < 0, -1, reason * len(KINDS) + kind)
    labelling = [(text, name) for text in texts for name in KINDS]
    for key in keys:
        roots, counts = np.unique(flow.labels.find(flow.state[key]), return_counts=True)
        roots, counts = roots[classes[roots] >= 0], counts[classes[roots] >= 0]
        pairs, inverse = np.unique(np.stack([classes[roots], counts]), axis=1, return_inverse=True)
        classes[roots] = len(labelling) + inverse.reshape(-1)
        labelling.extend(labelling[c] for c in pairs[0].tolist())
    return classes, labelling


def _collect(
    flow: Flow, state: dict[str, Tensor], frozen: dict[str, str], plain: dict[str, str]
) -> tuple[tuple[ChannelGroup, ...], tuple[np.ndarray, ...]]:
    first = _first_use(flow.capture)
    place = {name: number for number, name in enumerate(state)}
    keys = sorted(
        (key for key, labels in flow.state.items() if key[0] in first and len(labels) > 1),
        key=lambda key: (first[key[0]], place[key[0]], key[1]),
    )
    classes, labelling = _classes(flow, keys)
    found: dict[int, list[Member]] = defaultdict(list)
    channels: dict[int, np.ndarray] = {}
    for key in keys:
        for number, roots, index in _positions(classes, flow.labels.find(flow.state[key])):
            if number not in channels:
                channels[number] = roots[np.argsort(index[:, 0], kind="stable")]
            order = np.searchsorted(roots, channels[number])
            found[number].append(_member(key, index[order], flow, state))

    groups: list[ChannelGroup] = []
    group_roots: list[np.ndarray] = []
    names: dict[str, int] = {}
    # Removable groups come first and so get the plain names.
    for number in sorted(found, key=lambda number: labelling[number][0] is not None):
        reason, kind = labelling[number]
        members = tuple(found[number])
        name = _name(members, names, plain)
        if reason is None and len(channels[number]) == 1:
            reason = "all positions are tied into one channel, and one always stays"
        reason = frozen.get(name, reason)
        kind = "inner" if kind == "residual" and _own_sums(flow, members, channels[number]) else kind
        unit = max(member.index.shape[1] for member in members)
        groups.append(ChannelGroup(name, len(channels[number]), members, kind, reason, unit))
        group_roots.append(channels[number])
    return tuple(groups), tuple(group_roots)


def _own_sums(flow: Flow, members: tuple[Member, ...], roots: np.ndarray) -> bool:
    """Whether all that is added is a layer's own, in its own code: the gates and the state of a recurrent one."""
    owners = {member.tensor.rpartition(".")[0] for member in members if member.role == "writer"} - {""}
    adders = {path for path, labels in flow.sums if np.isin(flow.labels.find(labels), roots).any()}
    return len(owners) == 1 and adders == owners


def _positions(classes: np.ndarray, roots: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of one axis: every class on it with its roots, ascending, and the positions of each, [channels, k]."""
    order = np.lexsort((np.arange(len(roots)), roots, classes[roots]))
    ordered = classes[roots[order]]
    edges = np.flatnonzero(np.diff(ordered, prepend=-2, append=-2))
    for start, stop in itertools.pairwise(edges.tolist()):
        number = int(ordered[start])
        if number >= 0:
            part = order[start:stop]
            unique = np.unique(roots[part])
            yield number, unique, part.reshape(len(unique), -1)


def _member(key: Key, index: np.ndarray, flow: Flow, state: dict[str, Tensor]) -> Member:
    role = flow.roles.get(key, "writer") if isinstance(state[key[0]], nn.Parameter) else "stat"
    return Member(key[0], key[1], role, torch.from_numpy(np.ascontiguousarray(index)))  # type: ignore[arg-type]


def _name(members: tuple[Member, ...], names: dict[str, int], plain: dict[str, str]) -> str:
    """The module of the first writer, without wrappers; further groups of the same module are numbered."""
    writer = next((m for m in members if m.role == "writer"), None)
    tensor = plain_name(plain, writer.tensor if writer is not None else members[0].tensor)
    base = tensor.partition(".parametrizations.")[0] if ".parametrizations." in tensor else tensor.rpartition(".")[0]
    base = base or tensor
    base = base if writer is not None else f"input of {base}"
    names[base] = names.get(base, 0) + 1
    return base if names[base] == 1 else f"{base}#{names[base]}"

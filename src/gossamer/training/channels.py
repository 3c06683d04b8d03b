"""Which channels of a network live, over the groups of a `gossamer.compaction.ChannelGraph`; scoring, pruning them.

Pruning channel c of a group zeroes, for good, every slice that makes, carries or reads it: rows and biases of its
writers, scale and shift of its norms, columns of its readers, and their optimizer state. The channel's activation is
then exactly zero and the network computes what the network without it computes, in training and in evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph, ChannelGroup, shrink_
from gossamer.compaction.borrow import duplicate
from gossamer.compaction.structure import culprits
from gossamer.training.weights import Masked

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Channels:
    """The channels of some groups of a graph.

    Attributes:
        graph: the graph of the network as it is now (compaction replaces it); first_graph that of the original.
        groups: the groups whose channels may be pruned, by their name in the original graph.
        alive: bool[channels of the group now] per group.
        origin: int64[channels of the group now] per group: the channel's number in the original network.
        original: channels per group of the original network.
        entries: weights one channel has in its writers, in the original network: |W_c|.
        costs: what one channel of a group costs (`gossamer.training.ranking`), where a method asked for it.
        stays: why other groups are not among these, by their name.
        stuck: why the dead channels of some groups could not be cut out while training; they stay masked.
    """

    network: nn.Module
    graph: ChannelGraph
    first_graph: ChannelGraph
    groups: dict[str, ChannelGroup]
    alive: dict[str, Tensor]
    origin: dict[str, Tensor]
    original: dict[str, int]
    entries: dict[str, int]
    costs: dict[str, float] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        graph: ChannelGraph,
        groups: Sequence[ChannelGroup],
        stays: Mapping[str, str] | None = None,
    ) -> Channels:
        """All channels of these groups, alive."""
        named = {group.name: group for group in groups}
        result = cls(network, graph, graph, named, {}, {}, {}, {}, stays=dict(stays or {}))
        for group in groups:
            result.alive[group.name] = torch.ones(group.channels, dtype=torch.bool, device="cpu")
            result.origin[group.name] = torch.arange(group.channels, device="cpu")
            result.original[group.name] = group.channels
            result.entries[group.name] = sum(
                weight.numel() // weight.shape[axis] * index.shape[1] for weight, axis, index in result.writers(group)
            )
        return result

    def writers(self, group: ChannelGroup) -> list[tuple[Tensor, int, Tensor]]:
        """(weight, axis, index[channels, k]) of the weights that make the group's channels; biases are not weights."""
        found = [(self.network.get_parameter(m.tensor), m) for m in group.members if m.role == "writer"]
        return [(weight.detach(), m.axis, m.index) for weight, m in found if weight.ndim > 1]

    def kinds(self) -> dict[str, tuple[str, int, int]]:
        """Per group, (kind, rows that a channel pools, dimensions of its weights): what can be ranked together.

        The mean over many rows hardly varies: heads of 32 rows all score within a few percent of each other, neurons
        within tens of percent. In one ranking no head would ever be among the lowest. Neurons of linear layers and
        channels of convolutions differ a hundredfold in what they cost.
        """
        result = {}
        for name, group in self.groups.items():
            writers = self.writers(group)
            rows = max((index.shape[1] for *_, index in writers), default=1)
            result[name] = group.kind, rows, max((weight.ndim for weight, *_ in writers), default=2)
        return result

    def restricted(self, keep: Callable[[ChannelGroup], bool]) -> Channels:
        """The same with fewer groups."""
        return Channels.of(self.network, self.graph, [g for g in self.groups.values() if keep(g)], self.stays)

    def fitting(self) -> Channels:
        """The same without the groups that could not be cut out of the network; says so of each.

        The graph says which slices belong together. Whether the code between them follows (a width written as a number,
        a view) shows only when half of the channels are gone from a copy, and a channel that could never be cut out
        must not be trained away.
        """
        keep = {
            name: torch.arange(group.channels, device="cpu") < (group.channels + 1) // 2
            for name, group in self.groups.items()
        }

        def attempt(names: list[str]) -> None:
            try:
                twin = duplicate(self.network)
            except (RuntimeError, TypeError) as error:
                kind = type(self.network).__name__
                logger.warning("%s cannot be copied, so its channels are not tried: %s", kind, error)
                return
            shrink_(twin, self.graph, {name: keep[name] for name in names})

        reasons = culprits([name for name, mask in keep.items() if not bool(mask.all())], attempt)
        for name, reason in reasons.items():
            logger.warning("channels of %s stay, they could not be cut out afterwards: %s", name, reason)
        if not reasons:
            return self
        self.stays |= {name: f"it could not be cut out afterwards: {reason}" for name, reason in reasons.items()}
        return self.restricted(lambda group: group.name not in reasons)

    def explain(self) -> str:
        """The groups of the network, and why those that could be removed stay."""
        reasons = [f"{name} stays: {reason}" for name, reason in self.stays.items()]
        return "\n".join([self.graph.explain(), *reasons])

    def full(self) -> dict[str, Tensor]:
        """bool[channels of the original network] per group: which live."""
        return {name: self._originally(name, self.origin[name][self.alive[name]]) for name in self.original}

    def present(self) -> dict[str, Tensor]:
        """bool[channels of the original network] per group: which are still in the tensors, dead or alive."""
        return {name: self._originally(name, self.origin[name]) for name in self.original}

    def _originally(self, name: str, numbers: Tensor) -> Tensor:
        return torch.zeros(self.original[name], dtype=torch.bool, device="cpu").index_fill_(0, numbers, True)

    def umm(self) -> dict[str, Tensor]:
        """float64[channels] per group: unmasked mean magnitude, UMM(c) = sum of |w| over W_c / |W_c|.

        W_c are the weights of channel c in all writers of the group, zeros and removed inputs included, so that one
        number falls when a channel loses weights and when its weights shrink (Chase, Yin et al., 2023). With a single
        writer this is the paper's score; several writers (a residual stream) pool their weights.
        """
        result = {}
        for name, group in self.groups.items():
            total = torch.zeros(group.channels, dtype=torch.float64, device="cpu")
            for weight, axis, index in self.writers(group):
                others = [a for a in range(weight.ndim) if a != axis]
                # in float64: the sum of a compacted weight then ranks channels as that of the masked one does
                per_position = weight.abs().sum(others, dtype=torch.float64).cpu()
                total += per_position[index].sum(1)
            result[name] = total / self.entries[name]
        return result

    def held(self, name: str, blind: Set[str] = frozenset()) -> bool:
        """Whether the group has a tensor that is frozen by now, or one of `blind`: its channels then stay."""
        if name not in self.groups:
            return True  # a single channel is left
        names = {m.tensor for m in self.groups[name].members if m.role != "stat"}
        return bool(names & blind) or not all(self.network.get_parameter(n).requires_grad for n in names)

    def prune(self, name: str, channels: Tensor, track: Callable[[str], Masked]) -> list[Masked]:
        """Remove channels (int64, present numbers) of a group from the masks of every tensor they touch: those.

        Args:
            track: gives the mask of a parameter by its name.
        """
        self.alive[name][channels] = False
        touched = []
        for member in self.groups[name].members:
            if member.role == "stat":
                continue  # running statistics of a zero channel have no effect
            tensor = track(member.tensor)
            size = tensor.parameter.shape[member.axis]
            vector = tensor.axes.setdefault(member.axis, torch.ones(size, dtype=torch.bool, device=tensor.mask.device))
            vector[member.index[channels].reshape(-1).to(vector.device)] = False
            touched.append(tensor)
        for tensor in touched:
            alive = tensor.alive()
            assert alive is not None
            tensor.mask &= alive
        return touched

    def slice(self, graph: ChannelGraph, stay: dict[str, Tensor]) -> None:
        """Take over the graph of the network of which only the channels `stay` (bool per changed group) are left.

        Raises:
            RuntimeError: the graph does not have these channels.
        """
        found = {}
        left = list(graph.groups)
        for name, group in self.groups.items():
            expected = int(stay[name].sum()) if name in stay else group.channels
            axes = {(m.tensor, m.axis) for m in group.members}
            same = [g for g in left if g.channels == expected and {(m.tensor, m.axis) for m in g.members} == axes]
            if same:
                found[name] = same[0]
                left.remove(same[0])
            elif expected > 1:  # a single channel is no axis to a graph; it stays, and needs none
                raise RuntimeError(f"group {name} keeps {expected} channels, the compacted network differs")
        for name, mask in stay.items():
            self.origin[name], self.alive[name] = self.origin[name][mask], self.alive[name][mask]
        self.groups, self.graph = found, graph

    def state_dict(self) -> dict[str, Any]:
        """Of each group: the numbers, in the original network, of the channels that live and of those that are still
        there, and what one costs, where that was asked."""
        state: dict[str, dict[str, Any]] = {
            name: {"alive": self.origin[name][alive], "here": self.origin[name]} for name, alive in self.alive.items()
        }
        for name, cost in self.costs.items():
            state[name]["cost"] = cost
        return state

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless the state has these groups and no channel that was cut out here."""
        if state.keys() != self.alive.keys():
            raise ValueError(f"the state has channel groups {list(state)}, expected {list(self.alive)}")
        for name, entry in state.items():
            if not bool(torch.isin(entry["here"], self.origin[name]).all()):
                raise ValueError(
                    f"the network has lost channels of {name} that the state still has: use a fresh network"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checked state: the channels that live, and the costs that a run began with."""
        self.set_alive({name: entry["alive"] for name, entry in state.items()})
        self.costs = {name: entry["cost"] for name, entry in state.items() if "cost" in entry}

    def set_alive(self, numbers: dict[str, Tensor]) -> None:
        """Let exactly the channels with these original numbers live."""
        self.alive = {name: torch.isin(origin, numbers[name]) for name, origin in self.origin.items()}


def rows_of(channels: Channels, tensor: str) -> tuple[str, Tensor] | None:
    """(group, int64[channels] rows) when rows of this weight alone make the channels of a group, else None."""
    for name, group in channels.groups.items():
        writers = [m for m in group.members if m.role == "writer" and channels.network.get_parameter(m.tensor).ndim > 1]
        if [(m.tensor, m.axis, m.index.shape[1]) for m in writers] == [(tensor, 0, 1)]:
            return name, writers[0].index[:, 0]
    return None

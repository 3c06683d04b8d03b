"""Chase: explore globally under a soft memory bound while whole channels, emptied by the exploration, are removed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from gossamer.compaction.rounding import step
from gossamer.schedule import Schedule
from gossamer.training import shrinking
from gossamer.training.channels import Channels
from gossamer.training.distribution import allocate
from gossamer.training.exploration import Exploration
from gossamer.training.ranking import COMPARISONS, comparable, costs, lowest, widths
from gossamer.training.rewiring import Change
from gossamer.training.settings import count, fraction, one_of
from gossamer.training.tracing import watch

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class Chase(Exploration):
    """Yin et al., "Dynamic sparsity is channel-level sparsity learner", 2023.

    Exploration, every `explore_every` steps. Until `explore_stop` (phase A): prune to round(d * N) weights of largest
    |w|, grow to round(D(t) * N) where |dense gradient| is largest, D(t) = d + extra_density (1 + cos(pi t / T_A)) / 2.
    After it (phase B): replace ceil(rho(t) * nnz) weights and return to round(d * N), rho cosine over `final_drop`.
    N is the original number of weights throughout: what removed channels held is grown elsewhere.

    Removal, every `channel_every` steps and half an exploration period later, until `channel_stop` (T_c): after each
    event exactly round(C * S(t)) of the C channels are gone, S(t) = channel_sparsity * (1 - (1 - t / T_c)^3), those of
    smallest UMM = mean |w| over all entries of the channel (`Channels.umm`). Removed channels never return. A group
    keeps at least max(1, floor(C_g * (1 - channel_sparsity) * min_width)) channels. Each kind of channel (rows of
    linear layers, of convolutions, residual channels, attention heads, convolution groups; `Channels.kinds`) loses its
    share S(t), as far as the floors let it, and is ranked by itself: the mean over a head's many rows varies so little
    that no head would ever be the lowest beside single neurons. (Fang et al., "Isomorphic pruning for vision models",
    2024, rank sub-structures of one form by themselves for the same reason.) The published networks have one kind.

    Args (beyond `Settings`; `update_every`, `start`, `stop`, `replace_step` and `regrow_dropped` do not apply):
        channel_sparsity: fraction of the channels of all removable groups that is removed, in [0, 1].
        explore_every: optimizer steps between explorations.
        channel_every: optimizer steps between removals.
        extra_density: soft memory bound above `density`.
        explore_stop: fraction of total_steps at which phase B begins.
        channel_stop: fraction of total_steps of the last removal.
        final_drop: replaced fraction in phase B, at the beginning and at the end of the whole training.
        min_width: floor of a group's width, as a fraction of its share.
        scope: "inner" (channels inside a block, and attention heads: as published) or "all" (residual streams too, what
            the paper calls prune skip; the score of such a channel pools all its writers, our extension).
        explore: "global" (one ranking over all layers) or "layer" (each layer by its ERK share of the living network).
        normalize: how channels of different groups are compared. "cost": each group loses its channels of smallest UMM,
            and a share of them that grows with the square root of what one costs in operations and weights
            (`gossamer.training.ranking`). "group" ranks UMM over the group's mean. "none" ranks UMM as published, which
            takes nearly all channels from the layers of wide fan-in.
        round_to: prefer widths that are multiples of this many positions (`gossamer.compaction.rounding.step`: a head
            counts as its rows, narrow groups take smaller steps).
        compact_every: cut dead channels out of the network, optimizer and masks in place after every k-th removal
            (k removals are k * channel_every optimizer steps), so that training itself gets faster. Widths are rounded
            by `round_to`: a few dead channels wait for a later compaction. None: never.
        example_inputs: inputs for tracing the channels; None: the first training batch.

    Raises (beyond `Settings`):
        ValueError: a channel_sparsity the floors do not allow; a network without removable channels; arguments out of
            range; compact_every with more than one process or with tiles.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = Chase(
        ...     model, optimizer, density=0.2, channel_sparsity=0.5, total_steps=20, explore_every=4, channel_every=4
        ... )
        >>> for _ in range(20):
        ...     optimizer.zero_grad(); model(torch.randn(3, 20)).square().sum().backward(); optimizer.step()
        >>> method.nnz(), int(method.channels()["0"].sum())
        (80, 8)
    """

    channel_sparsity: float = 0.4
    channel_every: int = 100
    channel_stop: float = 0.8
    min_width: float = 0.2
    scope: str = "inner"
    normalize: str = "cost"
    round_to: int = 1
    compact_every: int | None = None
    example_inputs: Any = None
    name: ClassVar[str] = "chase"
    needs_dense: ClassVar[str] = "explores single weights and removes whole channels"

    def validate(self) -> None:
        super().validate()
        for name in ("channel_sparsity", "channel_stop", "min_width"):
            fraction(name, getattr(self, name))
        for name in ("channel_every", "round_to", *(["compact_every"] if self.compact_every is not None else [])):
            count(name, getattr(self, name))
        one_of("scope", self.scope, ("inner", "all"))
        one_of("normalize", self.normalize, COMPARISONS)

    def prepare(self) -> None:
        self.removals = 0
        if self.compact_every:
            shrinking.refuse(self)
        if self.channel_sparsity:
            watch(self, self.example_inputs, self._found)

    def _found(self, channels: Channels) -> None:
        kinds = ("inner", "heads") if self.scope == "inner" else ("inner", "heads", "residual")
        channels = channels.restricted(lambda group: group.kind in kinds).fitting()
        if not channels.groups:
            raise ValueError(
                f"no channels can be removed with scope={self.scope!r}; pass channel_sparsity=0, or see why:\n"
                f"{channels.explain()}"
            )
        self.total_channels = sum(channels.original.values())
        self.floors = {
            name: max(1, int(size * (1.0 - self.channel_sparsity) * self.min_width))
            for name, size in channels.original.items()
        }
        wanted, most = self.removed_by(self.last_removal), self.total_channels - sum(self.floors.values())
        if wanted > most:
            raise ValueError(
                f"channel_sparsity={self.channel_sparsity} removes {wanted} of {self.total_channels} channels, but the "
                f"floors {self.floors} leave only {most} to remove: lower channel_sparsity or min_width"
            )
        self.kinds = channels.kinds()
        if self.normalize == "cost":  # of the first example: a resumed run goes on with those that it began with
            channels.costs = costs(channels)
        self.steps = {name: step(group, self.round_to) for name, group in channels.groups.items()}
        self.removed = channels

    @property
    def last_removal(self) -> int:
        """T_c, the step of the last removal."""
        return round(self.channel_stop * self.total_steps)

    def removed_by(self, t: int) -> int:
        """Channels gone after the removal of step t: round(C * S(t)), C over all groups of the original network."""
        return round(self.total_channels * self._removed_share(t))

    def _removed_share(self, t: int) -> float:
        progress = t / self.last_removal if self.last_removal else 1.0
        return Schedule("cubic", 0.0, self.channel_sparsity)(progress)

    def events(self, t: int) -> tuple[str, ...]:
        last = t == self.last_removal
        removal = last or ((t + self.explore_every // 2) % self.channel_every == 0 and t < self.last_removal)
        if not (removal and self.channel_sparsity):
            return super().events(t)
        # the last removal is followed at once by an exploration: the run ends on its budget
        return ("channels", "explore") if last else ("channels", *super().events(t))

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        if event == "explore":
            return super().handle(event, t)
        assert self.removed is not None  # found by the first step
        alive, original = self.removed.alive, self.removed.original
        scores = comparable(self.removed.umm(), alive, self.normalize, original=original, costs=self.removed.costs)
        left = {name: int(a.sum()) for name, a in alive.items()}
        floors = {name: n if self.removed.held(name) else min(self.floors[name], n) for name, n in left.items()}
        wanted = max(self.removed_by(t) - (self.total_channels - sum(left.values())), 0)
        going = min(wanted, sum(left.values()) - sum(floors.values()))
        if going < wanted:
            logger.warning("step %d: %d channels should go, those that are not frozen allow %d", t, wanted, going)
        for kind, remove in self._quotas(going, t, floors).items():
            ranked = {name: score for name, score in scores.items() if self.kinds[name] == kind}
            keep = widths(ranked, alive, floors=floors, remove=remove, steps=self.steps)
            for name, width in keep.items():
                self.prune_channels(name, lowest(scores[name], alive[name], width))
        self.removals += 1
        return {}, {"removed": going, "channels": sum(left.values()) - going}

    def _quotas(self, going: int, t: int, floors: dict[str, int]) -> dict[tuple[str, int, int], int]:
        """How many channels of each kind go now: what each lacks to its share, adding up to `going`."""
        assert self.removed is not None
        share = self._removed_share(t)
        lacking, room = dict.fromkeys(self.kinds.values(), 0.0), dict.fromkeys(self.kinds.values(), 0)
        for name, kind in self.kinds.items():
            size, left = self.removed.original[name], int(self.removed.alive[name].sum())
            lacking[kind] += share * size - (size - left)
            room[kind] += left - floors[name]
        counts = allocate(going, [max(value, 0.0) for value in lacking.values()], list(room.values()))
        return dict(zip(lacking, counts, strict=True))

    def settle(self) -> None:
        if self.compact_every and "channels" in self._due and self.removals % self.compact_every == 0:
            shrinking.shrink(self, self.steps)

    def extra_state(self) -> dict[str, Any]:
        return {"removals": self.removals}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.removals = state["removals"]

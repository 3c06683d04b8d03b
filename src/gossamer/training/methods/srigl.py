"""SRigL: RigL with the same number of weights in every neuron, and removal of neurons that no longer matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.training import first_mask
from gossamer.training.channels import Channels, rows_of
from gossamer.training.discover import is_conv1d
from gossamer.training.fan_in import fill_rows
from gossamer.training.methods.rigl import RigL
from gossamer.training.rewiring import Change, room
from gossamer.training.select import topk
from gossamer.training.tracing import watch
from gossamer.training.weights import Layer


@dataclass(eq=False, repr=False)
class SRigL(RigL):
    """Lasby et al., "Dynamic sparse training with structured sparsity", 2024 (algorithm 1).

    Every living neuron (row of the 2-D view) of a layer has exactly k weights, k = floor(budget_l / living neurons). An
    update marks as salient the weights RigL would keep or grow; neurons with fewer than `min_salient` of them are
    ablated for good and their weights go to the others. Then the floor(f(t) * nnz) smallest |w| of the layer are
    dropped, every neuron keeps at most its k largest and is filled up to k where |gradient| is largest.

    An ablated neuron is a removed channel: its row, bias and norm parameters and the columns that read it are zero, so
    `gossamer.compact` can take it out exactly. Only neurons whose channel group has a single writer are ablated; those
    of the last layer, of residual streams and of attention heads stay.

    The floor keeps up to (neurons - 1) weights of a layer unused: nnz <= round(density * N).

    Args (beyond `RigL`; weights dropped by an update may always grow again):
        min_salient: salient weights a neuron needs: a fraction of k (below 1) or a number; 0 never ablates. The paper
            uses 0.3 for convolutional networks and 0.95 for vision transformers.
        example_inputs: inputs for tracing which columns read which neuron; None: the first training batch.

    Raises (beyond `RigL`):
        ValueError: a layer whose budget is below one weight per neuron; transposed convolutions.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = SRigL(
        ...     model, optimizer, density=0.2, total_steps=10, update_every=4, example_inputs=torch.zeros(1, 20)
        ... )
        >>> method.masks["0.weight"].sum(1).unique().tolist()
        [3]
    """

    min_salient: float = 0.3
    example_inputs: Any = None
    regrow_dropped: bool = field(init=False, default=True)
    candidates: int = field(init=False, default=0)
    name: ClassVar[str] = "srigl"
    needs_dense: ClassVar[str] = "gives every neuron the same number of single weights"

    def validate(self) -> None:
        super().validate()
        if self.min_salient < 0:
            raise ValueError(f"min_salient must be >= 0, got {self.min_salient}")
        if self.min_salient and tuple(self.tile) != (1, 1):
            raise ValueError(f"neurons can only be ablated with tile (1, 1), got {self.tile}: pass min_salient=0")

    def prepare(self) -> None:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        transposed = [m for m in self.network.modules() if isinstance(m, kinds) or is_conv1d(m)]
        owners = {id(m.weight): type(m).__name__ for m in transposed}
        for layer, count in zip(self.layers, self.budget, strict=True):
            if id(layer.tensor.parameter) in owners:
                kind = owners[id(layer.tensor.parameter)]
                raise ValueError(f"{layer.name} belongs to {kind}, the rows of whose weight are inputs: exclude it")
            if count < layer.grid[0]:
                raise ValueError(
                    f"{layer.name} keeps {count} weights for {layer.grid[0]} neurons, less than one each: "
                    "raise density, change distribution, or exclude it"
                )
        if self.min_salient:
            watch(self, self.example_inputs, self._found)

    def _found(self, channels: Channels) -> None:
        alone = {rows[0] for layer in self.layers if (rows := rows_of(channels, layer.tensor.name))}
        self.removed = channels.restricted(lambda group: group.kind == "inner" and group.name in alone).fitting()

    def handle(self, event: str, t: int) -> tuple[Change, dict[str, Any]]:
        share, kept, ablated = self.drop_share(t), {}, {}
        for layer in self.dynamic():
            kept[layer], salient = self._salient(layer, share)
            ablated.update(self._unimportant(layer, salient))
        for group, channels in ablated.items():
            self.prune_channels(group, channels)
        changes = {layer: self._filled(layer, units, self.gradient(layer)) for layer, units in kept.items()}
        return changes, {"drop_fraction": share, "ablated": sum(len(channels) for channels in ablated.values())}

    def initial_units(self) -> Change:
        none = {layer: torch.zeros_like(layer.active()) for layer in self.layers}
        return {layer: self._filled(layer, units, first_mask.scores(self, layer)) for layer, units in none.items()}

    def _salient(self, layer: Layer, share: float) -> tuple[Tensor, Tensor]:
        """The units RigL's drop keeps, and per row how many RigL would keep or grow."""
        active = layer.active()
        present = int(torch.count_nonzero(active))
        count = int(share * present)
        kept = topk(self.magnitude(layer), present - count, allowed=active)
        candidates = ~kept & room(layer)
        grown = topk(self.gradient(layer), min(count, int(torch.count_nonzero(candidates))), allowed=candidates)
        return kept, (kept | grown).view(layer.grid).sum(1)

    def _unimportant(self, layer: Layer, salient: Tensor) -> dict[str, Tensor]:
        """The layer's channels with too few salient weights; one always stays."""
        whole = layer.shape[0] == layer.tensor.parameter.shape[0]
        found = rows_of(self.removed, layer.tensor.name) if self.removed and whole else None
        if found is None or self.removed is None or self.removed.held(found[0], self.blind):
            return {}
        name, rows = found
        alive, counts = self.removed.alive[name], salient.cpu()[rows]
        fan_in = int(layer.active().view(layer.grid).sum(1).max())
        pruned = alive & (counts < (self.min_salient * fan_in if self.min_salient < 1 else self.min_salient))
        if torch.equal(pruned, alive):
            pruned[int(torch.where(alive, counts, -1).argmax())] = False
        return {name: pruned.nonzero().squeeze(1)} if bool(pruned.any()) else {}

    def _filled(self, layer: Layer, kept: Tensor, growth: Tensor) -> Tensor:
        """bool[units] with the same number of weights in every living row."""
        allowed = layer.allowed()
        allowed = None if allowed is None else allowed.view(layer.grid)
        capacity = torch.tensor([layer.grid[1]] * layer.grid[0], device="cpu") if allowed is None else allowed.sum(1)
        budget = self.budget[self.layers.index(layer)]
        k = min(budget // max(int((capacity > 0).sum()), 1), int(capacity.max()))
        magnitude = self.magnitude(layer).view(layer.grid)
        return fill_rows(kept.view(layer.grid), magnitude, growth.view(layer.grid), k, allowed).view(-1)

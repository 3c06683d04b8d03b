"""The data of a run: network, optimizer, settings, masks, and what is remembered from one step to the next.

`Method` adds what happens when. Everything that only reads or writes data (checkpoints, the first mask,
compaction while training, ...) takes a `State`.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.compaction import ChannelGraph
from gossamer.training import distributed, optimizer_state
from gossamer.training.channels import Channels
from gossamer.training.discover import discover, unwrap
from gossamer.training.distribution import allocate, budgets
from gossamer.training.ever_active import EverActive
from gossamer.training.gradients import Gradients, check_finite
from gossamer.training.random import uniform
from gossamer.training.settings import Settings, real
from gossamer.training.warmup import Warmup
from gossamer.training.weights import Layer, Masked
from gossamer.wrappers import unwrap_optimizer


class State(Settings):
    """A run of a training method, as data. Making one touches nothing of the network.

    Attributes:
        network: the model without wrappers. `optimizer` is without them, too.
        step: optimizer steps seen.
        layers: what is rewired, in the order of `named_parameters`.
        tensors: every masked parameter by name, biases and norm weights of removed channels included.
        budget: units each layer keeps by the distribution at the target density.
        history: one dict per event: step, kind, nnz, density, dropped, grown, and what the method adds.
        pending: events that are due and wait for gradients.
        removed: channels and which of them live, for methods that remove channels; `untraced` while these wait for the
            first forward pass to be found.
        first_mask, signs: "random" or "magnitude", and what spoke for a trained network if `init` is None.
        blind: trained parameters that the events of this step have no gradient of; they keep their places.
        shapes, sizes, units: of the original network.
        ever_active, churn, gradients, warmup: what is recorded of masks and gradients.
        followers: copies of the network that lose the channels it loses.
    """

    name: ClassVar[str]  # of the method

    @torch.inference_mode(False)  # what is made here serves training, wherever it is made
    def __post_init__(self, density: float) -> None:
        real("density", density)
        if not 0.0 < density <= 1.0:  # first, as other arguments are measured against it
            raise ValueError(f"density must be in (0, 1], got {density}")
        self.target_density = density
        optimizer_state.refuse(self.optimizer)
        self.optimizer = unwrap_optimizer(self.optimizer)
        optimizer_state.refuse(self.optimizer)
        self.validate()
        self.network = unwrap(self.model)
        self.layers = discover(
            self.network, include=self.include, exclude=tuple(self.exclude), tile=(self.tile[0], self.tile[1]),
            optimizer=self.optimizer,
        )  # fmt: skip
        self.tensors = {layer.tensor.name: layer.tensor for layer in self.layers}
        self.shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        self.sizes = {name: math.prod(tensor.shape) for name, tensor in self.tensors.items()}
        self.units = sum(layer.units for layer in self.layers)
        self.budget = self.budgets(density)
        self.step = 0
        self.pending: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.ever_active = EverActive()
        self.churn = dict.fromkeys(self.tensors, 0.0)
        self.gradients = Gradients(self.grad_window)
        self.warmup = Warmup(self.grow_warmup)
        self.blind: set[str] = set()
        self.followers: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.removed: Channels | None = None
        self.saved_channels: dict[str, Any] | None = None
        self.untraced = False
        self.first_mask = "random"
        self.signs: list[str] = []

    # ------------------------------------------------------------------ schedule and budgets

    @property
    def first_step(self) -> int:
        return max(1, round(self.start * self.total_steps))

    @property
    def last_step(self) -> int:
        return round(self.stop * self.total_steps)

    def progress(self, t: int) -> float:
        """0 at the first step of the schedule, 1 at the last."""
        first = round(self.start * self.total_steps)
        return (t - first) / max(self.last_step - first, 1)

    def trained(self) -> list[Layer]:
        """Layers whose parameter is trained at present. The others keep their places."""
        return [layer for layer in self.layers if not layer.tensor.frozen]

    def budgets(self, density: float) -> list[int]:
        """Units per layer at a density, by the distribution."""
        names, shapes, units, kinds = zip(*((x.name, x.full_shape, x.units, x.tile) for x in self.layers), strict=True)
        return budgets(names, shapes, units, density=density, distribution=self.distribution, tiles=kinds)

    def shares(self, density: float) -> list[int]:
        """Units per layer at another density, in the proportions of the layers' budgets."""
        total = round(density * self.units)
        return allocate(total, [float(count) for count in self.budget], [layer.units for layer in self.layers])

    # ------------------------------------------------------------------ scores

    def magnitude(self, layer: Layer) -> Tensor:
        """Drop score |w| per unit.

        Raises:
            RuntimeError: weights that are not finite.
        """
        scores = layer.scores(layer.tensor.parameter.detach().abs())
        check_finite(scores, layer.name, "weights", self.step)
        return scores

    def gradient(self, layer: Layer) -> Tensor:
        """Grow score |dense gradient| per unit, of this update's step or window."""
        return layer.growth(self.gradients.now[layer.tensor.name])

    def random(self, layer: Layer, purpose: str) -> Tensor:
        """Uniform numbers per unit, the same for the same seed, layer and step."""
        device = layer.tensor.parameter.device
        return uniform(layer.units, seed=self.seed, name=layer.name, step=self.step, purpose=purpose, device=device)

    # ------------------------------------------------------------------ masks

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks of the prunable weights by parameter name: bool in the parameter's shape, or bool[tile_rows, tile_cols]
        for the tiles of a BlockSparseLinear."""
        return {name: tensor.mask for name, tensor in self.tensors.items() if tensor.prunable}

    def nnz(self) -> int:
        """Number of weights present."""
        return sum(tensor.weights(tensor.mask) for tensor in self.tensors.values() if tensor.prunable)

    def density(self) -> float:
        """Weights present / weights of the original network (prunable ones)."""
        return self.nnz() / sum(self.sizes.values())

    @torch.inference_mode(False)
    def channels(self) -> dict[str, Tensor]:
        """bool[channels of the original network] per channel group: which live. Empty for methods that remove none."""
        return self.removed.full() if self.removed else {}

    @property
    def graph(self) -> ChannelGraph | None:
        """The channel graph of the original network that `channels` refers to."""
        return self.removed.first_graph if self.removed else None

    def track(self, name: str) -> Masked:
        """The mask of a parameter by any of its names; parameters that are not prunable begin with a mask of ones."""
        parameter = self.network.get_parameter(name)
        for tensor in self.tensors.values():
            if tensor.parameter is parameter:
                return tensor
        return self.tensors.setdefault(name, Masked.full(name, parameter, prunable=False))

    @torch.no_grad()
    def apply(self) -> None:
        """Zero weights and optimizer states outside the masks, exactly."""
        for tensor in self.tensors.values():
            self.apply_mask(tensor)

    def apply_mask(self, tensor: Masked) -> None:
        """Zero one weight and its optimizer states outside the mask."""
        tensor.apply(self.optimizer)

    @torch.no_grad()
    def prune_channels(self, group: str, channels: Tensor) -> None:
        """Remove channels (int64, present numbers) of one group from every tensor they touch."""
        assert self.removed is not None
        for tensor in self.removed.prune(group, channels, self.track):
            self.apply_mask(tensor)

    def is_distributed(self) -> bool:
        """Whether masks are agreed on with other ranks."""
        return distributed.ranks() > 1 if self.distributed is None else self.distributed

    # ------------------------------------------------------------------ numbers

    def stats(self) -> dict[str, Any]:
        """Numbers for a report.

        Returns:
            step, first_mask, signs, nnz, density, itop (R_s over all layers), layers {name: nnz, size, density, itop,
            churn}, where churn is the share of the layer's weights that the last event replaced, and channels {group:
            alive, total}.
        """
        layers: dict[str, dict[str, Any]] = {}
        for name, mask in self.masks.items():
            tensor, size = self.tensors[name], self.sizes[name]
            nnz, ever = tensor.weights(mask), self.ever_active.count(tensor)
            layers[name] = {
                "nnz": nnz, "size": size, "density": nnz / size, "itop": ever / size, "churn": self.churn[name],
            }  # fmt: skip
        total = sum(self.sizes.values())
        nnz = sum(layer["nnz"] for layer in layers.values())
        return {
            "step": self.step,
            "first_mask": self.first_mask,
            "signs": list(self.signs),
            "nnz": nnz,
            "density": nnz / total,
            "itop": sum(layer["itop"] * layer["size"] for layer in layers.values()) / total,
            "layers": layers,
            "channels": {name: {"alive": int(a.sum()), "total": a.numel()} for name, a in self.channels().items()},
        }

"""Ways to spend a share of a network's multiply-adds per token, each trained for the same steps on the same text.

Every way but two begins from the same network, trained for some steps, and goes on with all its weights for further
steps on the same text. A shallow network of the same cost is trained from nothing for all the steps that the others had
together, and so is one whose tokens hop between few layers. (Following the outputs of a network that is itself young,
as in distillation, made every way worse than text alone.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gossamer.data.language import Language, windows
from gossamer.routing.learning.diagnosis import health
from gossamer.routing.learning.training import train
from gossamer.routing.lm import RadialConfig, RadialLM
from gossamer.routing.policies.expert_choice import ExpertChoice
from gossamer.routing.policies.fixed import RandomSkip, Static
from gossamer.routing.policies.policy import Policy
from gossamer.routing.profiling.profiling import profile
from gossamer.routing.radial import Radial


@dataclass(frozen=True)
class Recipe:
    """Sizes of the network and of its training."""

    sizes: RadialConfig
    length: int
    batch: int
    first: int  # steps of the teacher
    then: int  # further steps
    lr: float = 2e-3
    router_lr: float = 5e-3


@dataclass(frozen=True, eq=False)
class Run:
    """One seed: its text and its teacher."""

    recipe: Recipe
    text: Language
    seed: int
    teacher: Any

    def batches(self, steps: int, stage: int) -> Iterator[Tensor]:
        recipe = self.recipe
        seed = 10 * self.seed + stage
        return windows(self.text.train, length=recipe.length, batch=recipe.batch, steps=steps, seed=seed)

    def routed(self, policy: Policy | None, budget: float | None) -> Radial:
        """The teacher's copy, routed and trained for the further steps."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            radial = Radial(copy.deepcopy(self.teacher), policy=policy)
        steps, recipe = self.recipe.then, self.recipe
        train(
            radial.train(), self.batches(steps, 1), budget=budget, steps=steps, lr=recipe.router_lr,
            model_lr=recipe.lr, seed=self.seed, progress=False,
        )  # fmt: skip
        return radial.eval()

    def scratch(self, sizes: RadialConfig, mode: Any, budget: float | None) -> Radial:
        """Another network, trained for as many steps as teacher and student together."""
        recipe = self.recipe
        steps = recipe.first + recipe.then
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = RadialLM(sizes, mode, seed=self.seed)
        train(
            model.train(), self.batches(steps, 0), budget=budget, steps=steps, lr=recipe.router_lr, model_lr=recipe.lr,
            seed=self.seed, progress=False,
        )  # fmt: skip
        return model.eval()


def taught(recipe: Recipe, text: Language, seed: int) -> Run:
    """A seed's teacher: the whole network."""
    run = Run(recipe, text, seed, None)
    model = RadialLM(recipe.sizes, "sequential", seed=seed)
    train(
        model.train(), run.batches(recipe.first, 0), budget=None, steps=recipe.first, model_lr=recipe.lr, seed=seed,
        progress=False,
    )  # fmt: skip
    return replace(run, teacher=model.eval().model)


def longer(run: Run) -> Radial:
    """The whole network with the further steps too: what nothing that is cheaper should reach."""
    return run.routed(
        Static(run.recipe.sizes.layers, run.recipe.sizes.width, keep=range(run.recipe.sizes.layers)), None
    )


def shallow(run: Run, budget: float) -> Radial:
    layers = round(run.recipe.sizes.layers * budget)
    return run.scratch(replace(run.recipe.sizes, layers=layers), "sequential", None)


def dropped(run: Run, budget: float) -> Radial:
    """The layers of the least influence left out (ShortGPT)."""
    sizes = run.recipe.sizes
    order = profile(run.teacher, list(run.batches(4, 2))).order()
    gone = set(order[: sizes.layers - round(sizes.layers * budget)])
    keep = [layer for layer in range(sizes.layers) if layer not in gone]
    return run.routed(Static(sizes.layers, sizes.width, keep=keep), None)


def random(run: Run, budget: float) -> Radial:
    """Each token skips each layer with the same probability, but never the first and the last."""
    sizes = run.recipe.sizes
    rate = (1 - budget) * sizes.layers / (sizes.layers - 2)
    rates = [0.0, *[rate] * (sizes.layers - 2), 0.0]
    return run.routed(RandomSkip(sizes.layers, sizes.width, rate=rates, seed=run.seed), None)


def depths(run: Run, budget: float) -> Radial:
    """Mixture-of-Depths: every layer but the first and the last takes its best tokens."""
    sizes = run.recipe.sizes
    middle = range(1, sizes.layers - 1)
    capacity = max((budget * sizes.layers - 2) / len(middle), 0.05)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        policy = ExpertChoice(sizes.layers, sizes.width, capacity=capacity, routed=middle)
    return run.routed(policy, None)


def skipping(run: Run, budget: float) -> Radial:
    return run.routed(None, budget)


def hopping(run: Run, budget: float) -> Radial:
    """Half of the layers, each run as often as a token likes: from nothing."""
    sizes = run.recipe.sizes
    hops = sizes.layers
    return run.scratch(replace(sizes, layers=max(2, sizes.layers // 2), hops=hops), "free", budget)


OURS = ("router, skip", "router, free, from scratch")
METHODS: dict[str, Callable[[Run, float], Radial]] = {
    "shallow, from scratch": shallow, "static drop": dropped, "random skip": random, "Mixture-of-Depths": depths,
    OURS[0]: skipping, OURS[1]: hopping,
}  # fmt: skip


def measured(radial: Radial, batches: list[Tensor], layers: int) -> dict[str, float]:
    """Loss on held-back text, and what a token of it cost as a share of `layers` whole layers."""
    said = health(radial, batches)
    whole = radial.hops if radial.hops > 1 else len(radial.stack.layers)
    return {"loss": said.loss, "share": said.cost * whole / layers}

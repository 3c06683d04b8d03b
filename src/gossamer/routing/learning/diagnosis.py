"""Whether a router does its work: which routes tokens take, which units nobody runs, and who is worth the depth."""

from __future__ import annotations

import math
import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gossamer import files
from gossamer.routing.execute import Run
from gossamer.routing.flops import Costs, Counter
from gossamer.routing.learning.batches import IGNORED, Batch, Batches, labels_of
from gossamer.routing.learning.objective import outputs
from gossamer.routing.radial import Radial
from gossamer.routing.saved import identity

DEAD = 0.001
"""A unit that fewer tokens run is dead."""
SATURATED = 0.001
"""Nats of a route's entropy below which its decisions have no gradients left."""


@dataclass(frozen=True)
class Health:
    """What a policy did on some texts; `health` makes it.

    Attributes:
        model: which one it was. tokens: how many were looked at.
        usage: for each unit the share of tokens that run it. least: the smallest of them, and its unit.
        depths: for each number of units how many tokens ran so many. depth: their mean.
        routes: how many different ones were taken. common: the ten most frequent, as "1" and "0" for each unit, with
            their shares. entropy: of all routes, in nats: 0 where all tokens take the same.
        cost: share of the whole stack's multiply-adds that a token spent.
        loss: mean cross-entropy. correlation: Spearman's, of a token's depth and its loss; NaN where depths are equal.
        certainty: mean entropy in nats of a token's route by the probabilities of its router; NaN if it has none.
    """

    model: dict[str, Any]
    tokens: int
    usage: tuple[float, ...]
    depths: tuple[int, ...]
    routes: int
    common: tuple[tuple[str, float], ...]
    entropy: float
    cost: float
    loss: float
    correlation: float
    certainty: float

    @property
    def depth(self) -> float:
        return sum(self.usage)

    @property
    def least(self) -> tuple[float, int]:
        return min((share, unit) for unit, share in enumerate(self.usage))

    @property
    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        found = []
        dead = [unit for unit, share in enumerate(self.usage) if share < DEAD]
        if dead:
            found.append(f"units {', '.join(map(str, dead))} are run by fewer than {DEAD:.1%} of the tokens")
        if self.routes == 1:
            what = "all units: nothing is saved" if not dead and min(self.usage) == 1 else "the same route"
            found.append(f"all tokens run {what}; leaving units out for good would do as well")
        if self.certainty < SATURATED:
            found.append(f"the router is saturated: its routes have {self.certainty:.1g} nats of entropy left")
        return found

    def __str__(self) -> str:
        share, unit = self.least
        lines = [
            f"{self.tokens} tokens run {self.depth:.2f} of {len(self.usage)} units, {self.cost:.1%} of multiply-adds",
            f"{self.routes} routes with {self.entropy:.2f} nats of entropy; unit {unit} is used least, by {share:.1%}",
            f"loss {self.loss:.3f}; depth and loss of tokens correlate by {self.correlation:+.2f} (Spearman)",
        ]
        return "\n".join([*lines, *(f"warning: {each}" for each in self.warnings)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; what is no number is null."""
        record = {name: None if value != value else value for name, value in asdict(self).items()}
        files.write_json(path, {**record, "depth": self.depth, "warnings": self.warnings})


def health(radial: Radial, data: Iterable[Batch]) -> Health:
    """Run a model on batches as `distill` takes them, and look at its routes.

    Raises:
        ValueError: there is no batch, or one is none of the model's.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
    ...                      num_attention_heads=2)
    >>> found = health(Radial(LlamaForCausalLM(config)), [torch.randint(50, (2, 16))])
    >>> found.usage, found.routes, found.common
    ((1.0, 1.0, 1.0), 1, (('111', 1.0),))
    """
    head: Any = radial.get_output_embeddings()
    batches, device = Batches(data, None, vocabulary=len(head.weight)), head.weight.device
    routes: Tally[bytes] = Tally()
    depths, losses, certainties, counter = [], [], [], None
    with _as_in_use(radial):
        for step in range(batches.steps):
            batch = {name: value.to(device) for name, value in batches.take(step).items()}
            with torch.no_grad():
                out = outputs(radial, batch)
            run = radial.run
            assert run is not None
            if counter is None:
                counter = Counter(Costs.of_radial(radial, (batch["input_ids"].shape[1] + 1) / 2))
            counter.add(run)
            ran = _rows(run, len(radial.units))
            distinct, counts = ran.unique(dim=0, return_counts=True)
            for route, count in zip(distinct.numpy(), counts.tolist(), strict=True):
                routes[route.tobytes()] += count
            depths.append(ran.sum(1))
            losses.append(_losses(out.logits, batch).cpu())
            certainties.append(_certainty(radial, batch))
    assert counter is not None
    return _found(radial, routes, torch.cat(depths), torch.cat(losses), certainties, counter)


def _found(
    radial: Radial, routes: Tally[bytes], depths: Tensor, losses: Tensor, certainties: list[float], counter: Counter
) -> Health:
    total = len(depths)
    shares = np.array(list(routes.values())) / total
    real = losses.isfinite()
    return Health(
        model=identity(radial), tokens=total, usage=tuple(ran / total for ran in counter.ran),
        depths=tuple(torch.bincount(depths, minlength=len(radial.units) + 1).tolist()), routes=len(routes),
        common=tuple(
            ("".join("01"[each] for each in route), count / total) for route, count in routes.most_common(10)
        ),
        entropy=abs(float((shares * np.log(shares)).sum())), cost=counter.share, loss=float(losses[real].mean()),
        correlation=spearman(depths[real].numpy(), losses[real].numpy()), certainty=sum(certainties) / len(certainties),
    )  # fmt: skip


def _rows(run: Run, units: int) -> Tensor:
    """bool[tokens, units]: who ran what; nobody where a pass was over before."""
    text = run.tokens.text
    rows = [torch.ones_like(text, dtype=torch.bool) if each is None else each for each in run.rows]
    rows += [torch.zeros_like(text, dtype=torch.bool)] * (units - len(rows))
    return torch.stack(rows, 1).cpu()


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, equal values with their mean rank; NaN where one side is constant.

    >>> round(spearman(np.array([1, 2, 2, 9]), np.array([0.1, 0.4, 0.2, 0.8])), 4)
    0.9487
    """
    x, y = _ranks(a), _ranks(b)
    spread = float(x.std() * y.std())
    return float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: np.ndarray = (last - (counts - 1) / 2)[where]
    return ranks


def _losses(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """float[tokens]: of what follows each real token; NaN where nothing does."""
    labels = labels_of(batch)
    found = logits.new_full(batch["input_ids"].shape, math.nan, dtype=torch.float32)
    each = cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    found[:, :-1] = each.view(labels.shape).masked_fill(labels == IGNORED, math.nan)
    mask = batch.get("attention_mask")
    return found.flatten() if mask is None else found[mask.bool()]


def _certainty(radial: Radial, batch: dict[str, Tensor]) -> float:
    """Entropy of a token's route in a soft pass, at the temperature 1."""
    policy, run = radial.policy, radial.run
    before = policy.phase, policy.temperature
    policy.phase, policy.temperature = "soft", 1.0
    policy.train()
    try:
        with torch.enable_grad():
            outputs(radial, batch)
        assert radial.run is not None
        entropy = radial.run.walk.losses.get("entropy")
    finally:
        policy.eval()
        policy.phase, policy.temperature = before
        radial.run = run
    return math.nan if entropy is None else float(entropy.detach())


@contextmanager
def _as_in_use(radial: Radial) -> Iterator[None]:
    modes = [(module, module.training) for module in radial.modules()]
    radial.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

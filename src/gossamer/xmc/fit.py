"""Training an encoder and a head together.

Every number depends on (seed, step) alone: the order of the examples, the learning rates, the connections, the random
numbers inside the encoder. A run that stopped after any step goes on as if it had not.

    x = encoder(batch)                      a graph of the encoder only
    grad_x, loss = head.step(x, labels)     no logits, no gradients: the head is done with this batch (and its words)
    x.backward(grad_x)                      and the encoder follows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Adam, Optimizer

from gossamer.ranks import ALONE, Ranks
from gossamer.xmc.build import build_head
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.encoders import Encoder, Inputs
from gossamer.xmc.heads.base_head import Head
from gossamer.xmc.heads.features import features_of
from gossamer.xmc.heads.growth import Growth
from gossamer.xmc.recipe import Recipe

_GROWING = 1  # keeps what is drawn for growth apart from the order of an epoch


@dataclass(frozen=True)
class Examples:
    """What is trained on: prepared inputs and their label sets, and the cluster of each label where there are some."""

    inputs: Inputs
    labels: Csr
    clusters: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass
class Fit:
    """An encoder and a head in training, and what has been seen so far."""

    encoder: Encoder
    head: Head
    recipe: Recipe
    optimizer: Optimizer
    auxiliary: nn.Linear | None = None
    step: int = 0
    loss_sum: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    @torch.inference_mode(False)
    def of(
        cls,
        encoder: Encoder,
        labels: Csr,
        recipe: Recipe,
        *,
        clusters: int = 0,
        order: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> Fit:
        """A new one for these label sets. The encoder is as it comes; the head is drawn from the recipe's seed.

        Args:
            clusters: how many the auxiliary head tells apart; 0: there is none.
            order: int64[labels], in which the head holds the labels; None: their own.
            ranks: the processes that divide the labels.

        Labels begin with a bias at their frequency: from zero, what all of them together ask of the encoder at first is
        to say no, and it would not recover from that.
        """
        head = build_head(encoder.width, labels.shape[1], recipe, beside=encoder.beside, order=order, ranks=ranks)
        if recipe.loss == "bce":
            head.set_bias(((labels.column_counts().float() + 0.5) / (labels.shape[0] + 1)).logit())
        with torch.device("cpu"):  # Adagrad makes its states here
            optimizer = encoder.optimizer(recipe.encoder_lr or encoder.usual_lr)
        auxiliary = None
        if clusters:
            if not encoder.width:
                raise ValueError(f"clusters are {clusters}, but the encoder has nothing to train; expected none")
            auxiliary = nn.Linear(encoder.width, clusters, device="cpu", dtype=torch.float32)
            nn.init.zeros_(auxiliary.weight)
            nn.init.zeros_(auxiliary.bias)
        return cls(encoder, head, recipe, optimizer, auxiliary)

    def state(self) -> dict[str, Any]:
        """All of it as plain data; `load` takes it back."""
        state = {"step": self.step, "loss_sum": self.loss_sum, "curve": self.curve}
        state |= {"encoder": self.encoder.state_dict(), "head": self.head.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict()}
        if self.auxiliary is not None and self._adam is not None:
            state |= {"auxiliary": self.auxiliary.state_dict(), "auxiliary_optimizer": self._adam.state_dict()}
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it lacks something, or belongs to another encoder or head.
        """
        try:
            self.encoder.load_state_dict(state["encoder"])
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.auxiliary is not None and self._adam is not None:
                self.auxiliary.load_state_dict(state["auxiliary"])
                self._adam.load_state_dict(state["auxiliary_optimizer"])
            self.step, self.loss_sum, self.curve = int(state["step"]), float(state["loss_sum"]), list(state["curve"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the saved state does not fit this classifier: {str(error).splitlines()[0]}") from error

    def __post_init__(self) -> None:
        self._adam = None if self.auxiliary is None else Adam(self.auxiliary.parameters(), lr=1e-3)

    def learn(self, examples: Examples, rows: Tensor, total: int) -> float:
        """One step on the examples `rows`; returns its loss, the sum over labels and mean over examples."""
        devices = sorted({p.device.index or 0 for p in self.encoder.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices):
            torch.manual_seed((self.recipe.seed * total + self.step) % 2**63)  # dropout draws from here
            return self._learned(examples, rows, total)

    def _learned(self, examples: Examples, rows: Tensor, total: int) -> float:
        recipe = self.recipe
        rate = recipe.rate(self.step, total)
        share = 0.0 if self.auxiliary is None else recipe.auxiliary(self.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer.defaults["lr"] * rate
        labels = examples.labels.take(rows)
        self.optimizer.zero_grad()
        batch = examples.inputs.take(rows)
        with torch.enable_grad():
            x = self.encoder(batch)
        if not bool(x.detach().isfinite().all()):
            raise FloatingPointError(f"the encoder gives numbers that are not finite at step {self.step + 1}")
        grad_x, loss = self.head.step(
            x.detach(), labels, recipe.head_lr * rate, features=features_of(self.encoder, self.head, batch),
            scale=(1 - share) / len(rows),
        )  # fmt: skip
        # An encoder that is frozen has no graph; the heads train on.
        roots, gradients = ([x], [grad_x]) if x.requires_grad else ([], [])
        if share and self._adam is not None and examples.clusters is not None:
            with torch.enable_grad():
                roots.append(share * self._cluster_loss(x, labels, examples.clusters))
            gradients.append(torch.ones((), dtype=torch.float32, device="cpu"))
        # Embeddings have sparse gradients, which torch makes itself, on the default device; and unless it is told so it
        # warns that nobody checks them.
        with torch.device(x.device), torch.sparse.check_sparse_tensor_invariants(False):
            if roots:
                torch.autograd.backward(roots, gradients)
            self.optimizer.step()
        if share and self._adam is not None:
            self._adam.step()
            self._adam.zero_grad()
        self.step += 1
        moved = recipe.rewired(self.step, total)
        if moved:
            self.head.rewire(fraction=moved, growth=self._growth(examples) if recipe.rewire_candidates else None)
        return loss / (1 - share) if share < 1 else 0.0  # of the labels alone, so that points of the curve compare

    @torch.no_grad()
    def _growth(self, examples: Examples) -> Growth:
        """Examples for the gradient of connections that may come, a matter of (seed, step) alone."""
        recipe = self.recipe
        drawn = np.random.default_rng((recipe.seed, self.step, _GROWING)).permutation(len(examples))
        rows = torch.from_numpy(np.sort(drawn[: recipe.rewire_examples]))
        self.encoder.eval()
        x = torch.cat([self.encoder(examples.inputs.take(some)) for some in rows.split(recipe.batch_size)])
        self.encoder.train()
        features = features_of(self.encoder, self.head, examples.inputs.take(rows))
        return Growth(x, examples.labels.take(rows), recipe.rewire_candidates, features)

    def _cluster_loss(self, x: Tensor, labels: Csr, clusters: Tensor) -> Tensor:
        assert self.auxiliary is not None
        targets = torch.zeros(len(x), self.auxiliary.out_features, dtype=torch.float32, device="cpu")
        owner = torch.repeat_interleave(torch.arange(len(x), device="cpu"), labels.counts())
        targets[owner, clusters[labels.indices.long()]] = 1
        return binary_cross_entropy_with_logits(self.auxiliary(x), targets, reduction="sum") / len(x)


@torch.inference_mode(False)
def train(
    fit: Fit,
    examples: Examples,
    *,
    on_step: Callable[[Fit], None] = lambda _: None,
    on_epoch: Callable[[Fit], None] = lambda _: None,
) -> None:
    """Train from where `fit` stands to the end of the last epoch.

    Args:
        on_step: called after each step; what it raises ends the training with the step whole.
        on_epoch: called before that after the last step of an epoch, when the curve has its point.

    Raises:
        FloatingPointError: the loss or the encoder's output is not finite.
    """
    recipe = fit.recipe
    batch = min(recipe.batch_size, len(examples))
    if not batch:
        raise ValueError("there are no training examples; expected at least one")
    per_epoch = len(examples) // batch
    total = per_epoch * recipe.epochs
    fit.encoder.train()
    while fit.step < total:
        order = _order(len(examples), recipe.seed, fit.step // per_epoch)
        for at in range(fit.step % per_epoch, per_epoch):
            loss = fit.learn(examples, order[at * batch : (at + 1) * batch], total)
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {fit.step}; a smaller lr may help")
            fit.loss_sum += loss
            if at == per_epoch - 1:
                fit.curve.append({"step": fit.step, "epoch": fit.step // per_epoch, "loss": fit.loss_sum / per_epoch})
                fit.loss_sum = 0.0
                on_epoch(fit)
            on_step(fit)


def _order(rows: int, seed: int, epoch: int) -> Tensor:
    """The examples of an epoch; those left over after the last full batch join another epoch's."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(rows))

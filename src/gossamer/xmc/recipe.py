"""How a classifier is trained: the settings of a run, and what they are when nobody says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gossamer.schedule import Schedule

_WIDEST = 2**31  # inputs that a label can number
_LAST_SEED = 2**63 - 16  # what is drawn apart takes the next ones, which are int64 too
Grouping = Literal["similar", "frequency", "given"]


@dataclass(frozen=True)
class Recipe:
    """Settings of the head, its training, its rewiring and the auxiliary objective.

    Args:
        fan_in: inputs of a label. group: labels that share theirs (1, 16, 32 or 64).
        grouping: which ones share: "similar" (those with like examples), "frequency" or "given" (in their own order).
        frequent: share of the labels, the most frequent ones, that read more than `fan_in` inputs ...
        frequent_fan_in: ... so many; 0: all there are.
        intermediate: outputs of a ReLU layer between encoder and head, which the labels then read; 0: there is none.
        chosen: share of a label's inputs that are the words (or features) which tell most of it, where the encoder
            passes words on; the others are drawn from the embedding. 0: all are drawn from both.
        loss: "bce" or "hinge". optimizer: of the head, "sgd", "momentum" or "adam". dtype: "float32" or "bfloat16".
        epochs, batch_size: passes over the training part, examples of a step.
        lr, encoder_lr: highest learning rates of the head and the encoder; None: by optimizer and encoder.
        intermediate_lr: that of the intermediate layer, whose optimizer is Adam.
        warmup: share of the steps in which both rise; then they fall on a cosine.
        rewire_every: steps between two changes of the connections; 0: they stay.
        rewire_fraction: connections of a label that move the first time; falls on a cosine to none ...
        rewire_until: ... at this share of the steps.
        rewire_candidates: inputs that a label looks at when its connections move, of which it takes those with the
            largest gradient; no more move than that. 0: what comes is drawn.
        rewire_examples: how many examples that gradient is of.
        clusters: of labels, which the auxiliary head tells apart: how many (0: none), or a file that says them, a
            number a line (or a matrix in .npz, see `gossamer.xmc.grouping`).
        aux_weight: share of the loss that is the auxiliary one at first; falls on a cosine to none ...
        aux_until: ... at this share of the steps. Predictions never use it.
        seed: of everything.

    Raises:
        ValueError: naming the setting, its value and what was expected.

    Source: Ullah et al., "Navigating extremes", 2024 (arXiv 2411.03171), sections 3 and 4, appendix on settings.
    """

    fan_in: int = 64
    group: int = 1
    grouping: Grouping = "similar"
    frequent: float = 0.0
    frequent_fan_in: int = 0
    intermediate: int = 0
    chosen: float = 0.5
    loss: Literal["bce", "hinge"] = "bce"
    optimizer: Literal["sgd", "momentum", "adam"] = "adam"
    dtype: Literal["float32", "bfloat16"] = "float32"
    epochs: int = 4
    batch_size: int = 64
    lr: float | None = None
    encoder_lr: float | None = None
    intermediate_lr: float = 1e-3
    warmup: float = 0.05
    rewire_every: int = 0
    rewire_fraction: float = 0.25
    rewire_until: float = 0.66
    rewire_candidates: int = 0
    rewire_examples: int = 1024
    clusters: int | str = 0
    aux_weight: float = 0.4
    aux_until: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("fan_in", "epochs", "batch_size", "rewire_examples"):
            _whole(name, getattr(self, name), 1)
        for name in ("clusters", "seed", "rewire_every", "rewire_candidates", "frequent_fan_in", "intermediate"):
            if name != "clusters" or not isinstance(self.clusters, str):
                _whole(name, getattr(self, name), 0)
        for name, most in (("intermediate", _WIDEST), ("seed", _LAST_SEED)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        for name in ("chosen", "warmup", "rewire_until", "aux_until", "rewire_fraction", "aux_weight", "frequent"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        for name in ("lr", "encoder_lr", "intermediate_lr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.grouping not in get_args(Grouping):
            raise ValueError(f"grouping must be one of {', '.join(get_args(Grouping))}, got {self.grouping!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")

    @property
    def head_lr(self) -> float:
        """The highest learning rate of the head, whose loss is a sum over labels and a mean over examples."""
        return self.lr if self.lr is not None else {"adam": 0.005}.get(self.optimizer, 0.5)

    def frequent_of(self, labels: int) -> int:
        """How many of the labels count as frequent; one at least is left, and where there is a share, one is."""
        return min(math.ceil(self.frequent * labels), max(labels - 1, 0))

    def rate(self, step: int, total: int) -> float:
        """Factor of both learning rates at `step` of `total`: linear warm-up, then a cosine to zero."""
        rising = math.ceil(self.warmup * total)
        if step < rising:
            return (step + 1) / rising
        return Schedule("cosine", 1.0)((step - rising) / max(1, total - rising))

    def rewired(self, step: int, total: int) -> float:
        """Share of the connections that move after `step` of `total`; 0: none."""
        end = self.rewire_until * total
        if self.rewire_every == 0 or step == 0 or step % self.rewire_every or step >= end:
            return 0.0
        return Schedule("cosine", self.rewire_fraction)(step / end)

    def auxiliary(self, step: int, total: int) -> float:
        """Share of the loss that is the auxiliary objective, where there is one, at `step` of `total`."""
        end = self.aux_until * total
        return Schedule("cosine", self.aux_weight)(step / end) if step < end else 0.0


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

"""What routers are trained for: the text, a teacher, a budget, and routes that stay open at first.

    CE + a T^2 KL(teacher || student) + b MSE(last states) + budget - c H(route),    c falling to 0

CE and KL are means over tokens, KL of distributions softened by T; MSE is in units of the teacher's mean square. What a
policy learns besides, such as a predictor, is added as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from gossamer.routing.learning.batches import IGNORED, labels_of
from gossamer.routing.policies.policy import Walk
from gossamer.schedule import Schedule


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of a loss.

    Attributes:
        text: of CE. teacher: a. temperature: T. hidden: b. entropy: c at the first step.

    Raises:
        ValueError: one is negative or no number; a temperature of 0.

    Source: distillation after Hinton et al. (2015), section 2.
    """

    text: float = 1.0
    teacher: float = 1.0
    temperature: float = 2.0
    hidden: float = 0.1
    entropy: float = 0.01

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{each.name} must be a number of at least 0, got {value!r}")
        if not self.temperature:
            raise ValueError("temperature must be above 0, got 0")

    def terms(
        self, student: Outputs, teacher: Outputs | None, batch: Mapping[str, Tensor], walk: Walk, progress: float
    ) -> dict[str, Tensor]:
        """The parts by name, weighed; their sum is the loss, without a budget.

        Args:
            progress: share of the steps that are done.
        """
        labels = labels_of(batch)
        logits = student.logits[:, :-1].float()
        said = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        terms = {"text": self.text * said}
        if teacher is not None:
            mask = batch.get("attention_mask")
            real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
            t = self.temperature
            ours, theirs = (log_softmax(each.logits[real].float() / t, dim=-1) for each in (student, teacher))
            terms["teacher"] = self.teacher * t * t * kl_div(ours, theirs, reduction="batchmean", log_target=True)
            if self.hidden:
                aim = teacher.hidden[real].float()
                off = (student.hidden[real].float() - aim).square().mean()
                terms["hidden"] = self.hidden * off / aim.square().mean()
        for name, value in walk.losses.items():
            weight = -Schedule("linear", self.entropy)(progress) if name == "entropy" else 1.0
            terms[name] = weight * value
        return terms


@dataclass(frozen=True, eq=False)
class Outputs:
    """Of one pass: logits [texts, tokens, vocabulary], and the states that the head saw, [texts, tokens, width]."""

    logits: Tensor
    hidden: Tensor


def outputs(model: Any, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a decoder, a routed one or another, on a batch."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    with _head_input(model.get_output_embeddings()) as seen:
        logits = model(**given, use_cache=False).logits
    return Outputs(logits, seen[-1])


@contextmanager
def _head_input(head: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()

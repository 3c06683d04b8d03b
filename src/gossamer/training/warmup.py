"""Hold back weights that have just grown under Adam, whose first steps on them would be several times a usual one.

Adam corrects its averages by the age of the whole parameter. For a weight that grows late, with both averages at zero,
a constant gradient g gives at age a

    step = lr * (1 - beta1^a) / sqrt(1 - beta2^a),    a = 1: 3.2 lr,  a = 10: 6.5 lr,  a = 1000: 1.3 lr  (0.9, 0.999)

where a weight trained from the start moves by lr.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from gossamer.training.weights import Masked

_ADAMS = ("Adam", "AdamW", "NAdam", "RAdam")


class Warmup:
    """`left`: per weight of a parameter that grew lately, for how many steps it still moves by lr at most."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.left: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def grown(self, tensor: Masked, fresh: Tensor) -> None:
        """Count from now for the weights `fresh` (bool in the parameter's shape)."""
        if bool(fresh.any()):
            left = self.left.setdefault(tensor.name, torch.zeros_like(tensor.mask, dtype=torch.int32))
            left.masked_fill_(fresh, self.steps)

    def hold(self, tensors: Mapping[str, Masked]) -> None:
        """Before a step: remember the weights that may move by lr only."""
        for name in self.left:
            self._before[name] = tensors[name].parameter.detach().clone()

    def clamp(self, tensors: Mapping[str, Masked], optimizer: Optimizer) -> None:
        """After it: shorten their steps."""
        for name, before in self._before.items():
            tensor, left = tensors[name], self.left[name]
            parameter = tensor.parameter
            group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
            rate = float(group["lr"])
            short = before + (parameter.detach() - before).clamp(-rate, rate)
            parameter.data.copy_(torch.where(tensor.spread(left > 0), short, parameter.detach()))
            left.sub_(1).clamp_(min=0)
            if not bool(left.any()):
                del self.left[name]
        self._before = {}


def refuse(optimizer: Optimizer) -> None:
    """Raise ValueError for an optimizer whose usual step is not bounded by its learning rate."""
    if not any(cls.__name__ in _ADAMS for cls in type(optimizer).__mro__):
        raise ValueError(
            f"grow_warmup is for {', '.join(_ADAMS)}, which move a weight by about lr; "
            f"{type(optimizer).__name__} has no such step to clamp to"
        )

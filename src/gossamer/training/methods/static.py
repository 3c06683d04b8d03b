"""Static sparsity: the first mask is kept. The baseline every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gossamer.training.engine import Method


@dataclass(eq=False, repr=False)
class Static(Method):
    """Train with the mask drawn at the start; no weight is ever dropped or grown.

    Takes the arguments of `Settings`; those about updates have no effect. With init="magnitude" it keeps the largest
    weights of a pretrained network.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(20, 10)
        >>> method = Static(model, torch.optim.SGD(model.parameters(), lr=0.1), density=0.25, total_steps=10)
        >>> method.nnz(), int((model.weight != 0).sum())
        (50, 50)
    """

    name: ClassVar[str] = "static"

    def events(self, t: int) -> tuple[str, ...]:
        return ()

"""Build a method over a model whose weights a trainer has already loaded from a checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gossamer.training.first_mask import resuming

logger = logging.getLogger(__name__)


def rebuild(
    make: Callable[[Any, Any, int], Any],
    model: nn.Module,
    optimizer: Optimizer,
    total_steps: int,
    state: Mapping[str, Any] | None,
) -> Any:
    """`make(model, optimizer, total_steps)`, brought to `state` when there is one.

    A new method begins with a pattern of its own and zeroes the weights outside it; weights and optimizer state that
    were loaded beforehand are therefore put back after the pattern of `state` has replaced it.
    """
    if not state:
        method = make(model, optimizer, total_steps)
        if getattr(method, "compact_every", None):
            logger.warning(
                "compact_every=%d: a trainer cannot resume this run once channels are cut out, as it loads weights "
                "into the shapes of the whole network; gs.compact after training gives the same network",
                method.compact_every,
            )
        return method
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slots = copy.deepcopy(optimizer.state_dict())
    with resuming():
        method = make(model, optimizer, total_steps)
    method.load_state_dict(state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(slots)
    return method

"""The dense gradients an update reads: final ones, before masking, of one step or averaged over a window of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from gossamer.training.optimizer_state import gradient_scale
from gossamer.training.weights import Masked


class Gradients:
    """`now` holds what the events of this step read, by parameter name; `window` the running sums of earlier steps."""

    def __init__(self, window: int) -> None:
        self.length = window
        self.now: dict[str, Tensor] = {}
        self.window: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, present: Mapping[str, Tensor]) -> None:
        """Count one step into the window."""
        if self.length > 1:
            for name, gradient in present.items():
                self.window[name] = self.window[name] + gradient if name in self.window else gradient.clone()
            self.steps += 1

    def hold(self, present: Mapping[str, Tensor], step: int) -> None:
        """Set `now`: copies, as the gradients themselves are masked in place, or means over the window.

        Raises:
            RuntimeError: a gradient of the window that is not finite; `now` is then empty.
        """
        held = {}
        for name, gradient in present.items():
            held[name] = self.window[name] / self.steps if self.length > 1 else gradient.clone()
            if self.length > 1:
                check_finite(held[name], name, "gradient of an earlier step", step)
        self.now = held

    def close_window(self) -> None:
        """An update has read it."""
        self.window, self.steps = {}, 0


def dense(tensors: Iterable[Masked], optimizer: Optimizer) -> dict[str, Tensor]:
    """Gradients of the prunable tensors that have one, without GradScaler's factor.

    Raises:
        TypeError: a gradient in a sparse layout.
    """
    found, scale = {}, gradient_scale(optimizer)
    for tensor in tensors:
        gradient = tensor.gradient() if tensor.prunable else None
        if gradient is not None:
            found[tensor.name] = gradient if scale is None else gradient / scale
    return found


def check_finite(x: Tensor, name: str, what: str, step: int) -> None:
    """Raise RuntimeError naming the parameter when x holds NaN or infinity."""
    # One pass: infinity and NaN stay in a sum. Finite float32 numbers may overflow theirs, but not a float64 one, which
    # takes a converted copy and six times as long.
    if not torch.isfinite(x.sum()) and not torch.isfinite(x.sum(dtype=torch.float64)):
        raise RuntimeError(f"{name}: {what} not finite at the update of step {step}; the mask was not changed")

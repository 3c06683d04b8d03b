"""The dense gradients an update reads: final ones, before masking, of one step or averaged over a window of steps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gossamer.training.optimizer_state import gradient_scale
from gossamer.training.weights import Masked

logger = logging.getLogger(__name__)


class Gradients:
    """What updates know of the dense gradients, by parameter name.

    A parameter without a gradient in the step (or window) of an update, such as a head that other batches use, keeps
    its places in that update; the next gradient it gets is kept, and scores it in the next update if need be.

    Attributes:
        now: what the events of this step read.
        window: running sums of the last `steps` steps.
        owed: parameters that went without in the last update; kept: the first gradient each of them had after it.
    """

    def __init__(self, window: int) -> None:
        self.length = window
        self.now: dict[str, Tensor] = {}
        self.window: dict[str, Tensor] = {}
        self.steps = 0
        self.owed: set[str] = set()
        self.kept: dict[str, Tensor] = {}
        self._late: dict[str, Tensor] = {}
        self._warned: set[str] = set()

    def awaited(self, name: str) -> bool:
        """Whether the next gradient of this parameter is wanted, whatever the step."""
        return name in self.owed and name not in self.kept

    def add(self, present: Mapping[str, Tensor]) -> None:
        """Count one step into the window."""
        if self.length > 1:
            for name, gradient in present.items():
                self.window[name] = self.window[name] + gradient if name in self.window else gradient.clone()
            self.steps += 1

    def keep(self, present: Mapping[str, Tensor]) -> None:
        """Keep the gradients that are awaited, unless they hold NaN or infinity, or nothing."""
        for name, gradient in present.items():
            if self.awaited(name) and bool(gradient.any()) and bool(torch.isfinite(gradient).all()):
                self.kept[name] = gradient.clone()

    def hold(self, present: Mapping[str, Tensor], step: int) -> None:
        """Set `now`: copies, as the gradients themselves are masked in place, or means over the window.

        A gradient of zeros ranks nothing: beside others it counts as none.

        Raises:
            RuntimeError: a gradient of the window that is not finite; `now` is then empty.
        """
        held = {}
        for name in self.window if self.length > 1 else present:
            gradient = self.window[name] / self.steps if self.length > 1 else present[name].clone()
            if self.length > 1:
                check_finite(gradient, name, "gradient of an earlier step", step)
            held[name] = gradient
        ranking = {name: gradient for name, gradient in held.items() if bool(gradient.any())}
        held = ranking or held
        self._late = {name: gradient for name, gradient in self.kept.items() if name not in held}
        self.now = held | self._late

    def read(
        self, tensors: Iterable[Masked], optimizer: Optimizer, step: int, *, every: bool, ranks: bool
    ) -> dict[str, Tensor]:
        """Take from the tensors what a step needs, and return what they had.

        Args:
            every: all gradients are wanted, not only those that are awaited.
            ranks: an event of this step ranks by them.

        Raises:
            RuntimeError: a gradient that an event ranks by is not finite.
        """
        present = dense([x for x in tensors if every or self.awaited(x.name)], optimizer)
        if ranks:
            for name, gradient in present.items():
                check_finite(gradient, name, "gradient", step)
        if every:
            self.add(present)
        self.keep(present)
        if ranks:
            self.hold(present, step)
        return present

    def close(self, trained: Iterable[str], step: int) -> None:
        """An update has read everything; `trained` are the parameters it could have changed."""
        without = {name for name in trained if name in self._late or name not in self.now}
        never = sorted((without & self.owed) - self._late.keys() - self._warned)
        if never:
            self._warned.update(never)
            logger.warning(
                "step %d: no gradient has come to %s since the update before: they keep their places; freeze or "
                "exclude what is not trained",
                step, never,
            )  # fmt: skip
        self.owed, self.kept, self._late, self.now = without, {}, {}, {}
        self.window, self.steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        window, kept = ({name: x.clone() for name, x in part.items()} for part in (self.window, self.kept))
        return {"window": window, "window_steps": self.steps, "owed": sorted(self.owed), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, Masked]) -> None:
        def here(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.to(tensors[name].parameter.device).clone() for name, x in part.items()}

        self.window, self.steps = here(state["window"]), state["window_steps"]
        self.owed, self.kept = set(state.get("owed", ())), here(state.get("kept", {}))


def dense(tensors: Iterable[Masked], optimizer: Optimizer) -> dict[str, Tensor]:
    """Gradients of those prunable tensors that have one, without GradScaler's factor.

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

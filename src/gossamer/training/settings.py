"""The arguments that all training methods share; methods add their own by subclassing.

Times are counted in optimizer steps that really happened: a step that GradScaler skips does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from numbers import Real

from torch import nn
from torch.optim import Optimizer

from gossamer.training import warmup


@dataclass(eq=False, repr=False)
class Settings:
    """Arguments of every method.

    Args:
        model: the network, bare or inside DistributedDataParallel or torch.compile, prepared by Accelerate or Fabric or
            not; or a LightningModule.
        optimizer: the optimizer of its parameters, bare or in a wrapper of Accelerate, Lightning or Fabric; hooks are
            registered on the `step` of the one inside.
        density: fraction of the prunable weights that is kept, over all layers, in (0, 1]; the number kept is exactly
            round(density * N). Only weights that the method touches count: no frozen ones.
        total_steps: length of the training in optimizer steps (`Method.extend` makes it longer later).
        distribution: "erk", "er", "uniform" or {glob: density} (see `gossamer.training.distribution.budgets`).
        seed: of every random choice.
        init: first mask, "random" or "magnitude" (largest |w|, for pretrained weights). None: "magnitude" where the
            network looks trained, which is logged (see `gossamer.training.first_mask` for the signs), else "random".
        update_every: optimizer steps between two updates of the mask.
        start: fraction of total_steps before the first update.
        stop: fraction of total_steps after which the mask stays (Evci et al., 2020, use 0.75).
        include: globs on parameter names replacing the default choice (weights of Linear, Conv and attention that are
            trained by the optimizer). Frozen parameters are touched only if a glob matches them: they are masked once.
        exclude: globs on parameter names that stay dense.
        tile: micro-tile (rows, cols) of the 2-D view [out, in * kernel] in which weights live and die together.
        regrow_dropped: whether a weight dropped by an update may be grown again by the same one (it keeps its value).
        grow_init: value of grown weights: "zeros", "gradient" (-lr * gradient, one step of plain descent) or "random"
            (normal, with the deviation of the layer's live weights).
        grow_warmup: optimizer steps in which a grown weight moves by lr at most: for Adam, AdamW, NAdam, RAdam; their
            first steps on it are up to 6.5 times as long otherwise (see `gossamer.training.warmup`). 0: none.
        replace_step: an update takes the place of the optimizer's step, as in the original RigL, instead of following
            it. Parameters and optimizer state then stay as they are on that step.
        grad_window: gradients averaged for the scores of one update: those of its step and of the grad_window - 1
            steps before.
        distributed: agree on masks with the other ranks of the default process group. None: when there is more than
            one rank. False: independent runs.
    """

    model: nn.Module
    optimizer: Optimizer
    _: KW_ONLY
    density: InitVar[float] = 0.1
    total_steps: int
    distribution: str | Mapping[str, float] = "erk"
    seed: int = 0
    init: str | None = None
    update_every: int = 100
    start: float = 0.0
    stop: float = 0.75
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    tile: tuple[int, int] = (1, 1)
    regrow_dropped: bool = True
    grow_init: str = "zeros"
    grow_warmup: int = 0
    replace_step: bool = False
    grad_window: int = 1
    distributed: bool | None = None

    def validate(self) -> None:
        """Raise ValueError or TypeError for a value outside its range."""
        for name in ("total_steps", "update_every", "grad_window"):
            count(name, getattr(self, name))
        for name in ("seed", "grow_warmup"):
            count(name, getattr(self, name), low=0)
        if self.grow_warmup:
            warmup.refuse(self.optimizer)
        if self.grad_window > self.update_every:
            raise ValueError(f"grad_window={self.grad_window} is longer than update_every={self.update_every}")
        for name in ("start", "stop"):
            real(name, getattr(self, name))
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ValueError(
                f"start and stop are fractions of total_steps with 0 <= start <= stop <= 1, got start={self.start}, "
                f"stop={self.stop}"
            )
        one_of("init", self.init, (None, "random", "magnitude"))
        one_of("grow_init", self.grow_init, ("zeros", "gradient", "random"))
        pair = isinstance(self.tile, Sequence) and len(self.tile) == 2
        if not pair or not all(isinstance(side, int) and side >= 1 for side in self.tile):
            raise ValueError(f"tile must be two integers >= 1, got {self.tile!r}")
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a list of globs, got the string {getattr(self, name)!r}")


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def fraction(name: str, value: float, *, low: float = 0.0, high: float = 1.0) -> None:
    """Raise ValueError unless low <= value <= high, TypeError for what is no number."""
    real(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value!r}")


def count(name: str, value: object, *, low: int = 1) -> None:
    """Raise ValueError unless `value` is an integer >= low, TypeError for what is no integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


def real(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")

"""What a mask may assume about an optimizer: where its per-weight state lies and whether zeros stay zero.

Every state tensor of the parameter's shape (momentum_buffer, exp_avg, exp_avg_sq, ...) belongs to single weights and is
masked with them; scalars (step) are left alone. A state of another shape mixes weights and cannot be masked: refused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

# Optimizers for which weight = gradient = state = 0 stays (0, 0) after a step, weight decay included: masking the
# gradient is then exact and weights and states need no pass of their own. Adamax is not one of them (its running
# maximum of |gradient| + eps becomes eps), nor Rprop (its step sizes start at lr) nor ASGD (unproved).
_KEEPS_ZEROS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta")
_REFUSED = {
    "LBFGS": "it keeps flat copies of all parameters",
    "Adafactor": "it keeps one second moment per row and column",
    "Muon": "it orthogonalises whole matrices, so masked weights would not stay zero between steps",
    "SparseAdam": "it takes sparse gradients, and scores need dense ones",
    "ZeroRedundancyOptimizer": "each rank holds the state of only some parameters",
    "DeepSpeedOptimizerWrapper": "DeepSpeed steps by itself, on weights that it has flattened or divided",
}


def refuse(optimizer: Optimizer) -> None:
    """Raise TypeError for optimizers whose state cannot be masked weight by weight."""
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _REFUSED:
            raise TypeError(
                f"{type(optimizer).__name__} is not supported: {_REFUSED[cls.__name__]}; "
                f"use an optimizer with per-weight state such as {', '.join(_KEEPS_ZEROS)}"
            )


def keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether a zero weight with zero gradient and zero state keeps all three exactly zero.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> keeps_zeros(torch.optim.AdamW([weight])), keeps_zeros(torch.optim.Adamax([weight]))
        (True, False)
    """
    known = getattr(torch.optim, type(optimizer).__name__, None) is type(optimizer)
    # with eps = 0 the adaptive ones compute 0 / 0 = NaN
    divides = any("eps" in group and not group["eps"] > 0 for group in optimizer.param_groups)
    return known and type(optimizer).__name__ in _KEEPS_ZEROS and not divides


def tensors(optimizer: Optimizer, parameter: torch.nn.Parameter, name: str) -> list[Tensor]:
    """The state tensors of `parameter` that hold one number per weight (empty before the first step).

    Raises:
        TypeError: a state tensor that is neither a scalar nor of the parameter's shape.
    """
    found = []
    for key, value in optimizer.state.get(parameter, {}).items():
        if not torch.is_tensor(value) or value.ndim == 0:
            continue
        if value.shape == parameter.shape:
            found.append(value)
        else:
            raise TypeError(
                f"optimizer state {key!r} of {name} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}: "
                f"{type(optimizer).__name__} does not keep one number per weight and cannot be used with masks"
            )
    return found


def step_is_skipped(optimizer: Optimizer) -> bool:
    """True when GradScaler runs a fused optimizer on overflowed gradients: its kernel leaves every weight alone."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def gradient_scale(optimizer: Optimizer) -> Tensor | None:
    """GradScaler's factor still inside the gradients of a fused optimizer (None: gradients are unscaled)."""
    return getattr(optimizer, "grad_scale", None)

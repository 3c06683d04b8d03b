"""What ops refuse of one argument: one message per broken rule, naming it, its value and what was expected."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

MOST = 2**56
"""Of anything that is counted: kernels multiply such numbers by a few others within 64 bits."""
INT64 = -(2**63), 2**63 - 1
FLOAT32 = torch.finfo(torch.float32).max


def check_integer(name: str, value: int, least: int, most: int = MOST, why: str = "") -> None:
    """Refuse what is no integer from `least` (which is `why`) to `most`; True and False are none."""
    if type(value) is int and least <= value <= most:
        return
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}{why and ', ' + why}, got {value!r}")
    if value > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {value!r}")


def check_number(name: str, value: float, least: float = -math.inf, most: float = FLOAT32) -> float:
    """The number as a float; refused if it is none from `least` to `most`, or if float32 has no such number."""
    if type(value) is float and least <= value <= most and value >= -FLOAT32:
        return value
    real = isinstance(value, (Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool)
    if not real and not (isinstance(value, Tensor) and value.numel() == 1):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    # Compared before it is a float: an integer may be too large for one. NaN is refused too, for it is not less.
    if least <= value <= most and value >= -FLOAT32:
        return float(value)
    if most < FLOAT32:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {value}")
    bound = "" if least == -math.inf else f" of at least {least:g}"
    raise ValueError(f"{name} must be a number{bound}, finite in float32, got {value}")


def check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def described(value: object) -> str:
    """A tensor's dtype and shape, or what else was given."""
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

"""Random bits that are a pure function of (seed, step, row, slot): no state, no order, the same on every device.

A row gets 64 bits from (seed, step, row), its slots 16 bits each from those. csrc/counter.h computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def row_keys(seed: int, step: int, rows: Tensor) -> Tensor:
    """int64[n]: 64 random bits for each row number of int64[n]."""
    return _mix(step_key(seed, step) + rows)


def step_key(seed: int, step: int) -> int:
    """What rows of this step begin with: an int64."""
    return int(_mix(_mix(torch.tensor(_signed(seed), device="cpu")) ^ _signed(step)))


def slot_bits(keys: Tensor, slots: int) -> Tensor:
    """int64[n, slots] in [0, 2**32): 32 random bits for each slot of the rows with these keys."""
    slot = torch.arange(slots, device=keys.device) * 0x9E3779B1
    x = ((keys[:, None] & _LOW) + slot) & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16) ^ _shifted(keys[:, None], 32)


def draws(keys: Tensor, numbers: Tensor) -> Tensor:
    """int64[n, m]: the draws of these numbers of the rows with these keys, 64 random bits each."""
    return _mix(keys[:, None] + numbers * _signed(0x9E3779B97F4A7C15))


def draws_below(keys: Tensor, number: int, n: Tensor) -> Tensor:
    """int64[n]: one draw of each row, in [0, n) with n up to 2**31: the upper half of 64 random bits times n."""
    bits = draws(keys, torch.tensor([number], device=keys.device))[:, 0]
    return (_shifted(bits, 32) * n + ((bits & _LOW) * n >> 32)) >> 32


def round_stochastically(x: Tensor, keys: Tensor) -> Tensor:
    """float32[n, k] as bfloat16, up or down with the odds of where it lies between: right on average.

    The upper half of the slot's bits is added to what bfloat16 leaves out, and that is cut off.
    """
    bits = x.contiguous().view(torch.int32).to(torch.int64) & _LOW
    rounded = (bits + torch.where(x.isnan(), 0, slot_bits(keys, x.shape[1]) >> 16)) >> 16 << 16
    return rounded.to(torch.int32).view(torch.float32).to(torch.bfloat16)


def _signed(number: int) -> int:
    """The int64 with the bits of the lowest 64 of `number`."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, places: int) -> Tensor:
    return (x >> places) & ((1 << (64 - places)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Stafford's mix 13 of 64 bits, of the next number of Weyl's sequence: a step of splitmix64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)

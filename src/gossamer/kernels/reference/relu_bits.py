"""The relu with one bit for each element, and what a bit keeps: the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def relu_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x[..., C] -> (relu of x, bits int32[..., ceil(C / 32)]).

    Bit c % 32 of word c / 32 is set where x is not below or at zero: where y is positive, or NaN, which stays. Other
    elements become +0.

    >>> import torch
    >>> y, bits = relu_bits(torch.tensor([[1.0, -2.0, 3.0]]))
    >>> y.tolist(), bits.tolist()
    ([[1.0, 0.0, 3.0]], [[5]])
    """
    kept = ~(x <= 0)
    return torch.where(kept, x, torch.zeros_like(x)), pack_bits(kept)


def keep_bits(x: Tensor, bits: Tensor) -> Tensor:
    """x[..., C], bits int32[..., ceil(C / 32)] -> x where the bit is set, +0 elsewhere, whatever x holds there.

    >>> import torch
    >>> keep_bits(torch.tensor([[4.0, float("nan"), 6.0]]), torch.tensor([[5]], dtype=torch.int32))
    tensor([[4., 0., 6.]])
    """
    return x.masked_fill(~unpack_bits(bits, x.shape[-1]), 0)


def pack_bits(kept: Tensor) -> Tensor:
    """bool[..., C] -> int32[..., ceil(C / 32)]; bits past C are zero.

    >>> import torch
    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.int32)
    """
    words = -(-kept.shape[-1] // 32)
    wide = torch.nn.functional.pad(kept, (0, 32 * words - kept.shape[-1])).unflatten(-1, (words, 32))
    place = torch.arange(32, device=kept.device)
    value = (wide.to(torch.int64) << place).sum(-1)
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32)


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """int32[..., ceil(C / 32)] -> bool[..., C].

    >>> import torch
    >>> unpack_bits(torch.tensor([5], dtype=torch.int32), 3)
    tensor([ True, False,  True])
    """
    place = torch.arange(32, device=bits.device, dtype=torch.int32)
    return ((bits.unsqueeze(-1) >> place) & 1).bool().flatten(-2)[..., :channels]

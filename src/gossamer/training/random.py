"""Counter-based random numbers: the stream is a pure function of (seed, layer name, step, purpose).

Nothing is consumed from torch's global generator and no generator state has to be saved: a resumed run, another rank
and another device draw the same numbers. Drawn on the CPU, so that a GPU run makes the choices of a CPU run.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, name: str, step: int, purpose: str) -> torch.Generator:
    """A CPU generator for one (seed, name, step, purpose).

    Example:
        >>> a = torch.rand(3, generator=generator(0, "fc.weight", 100, "grow"))
        >>> b = torch.rand(3, generator=generator(0, "fc.weight", 100, "grow"))
        >>> torch.equal(a, b)
        True
    """
    key = f"{seed}\0{name}\0{step}\0{purpose}".encode()
    value = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1  # manual_seed takes a signed 64-bit int
    return torch.Generator().manual_seed(value)


def uniform(n: int, *, seed: int, name: str, step: int, purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """float32[n] uniform in [0, 1), reproducible on every device."""
    return torch.rand(n, generator=generator(seed, name, step, purpose), dtype=torch.float32, device="cpu").to(device)


def normal(n: int, *, seed: int, name: str, step: int, purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """float32[n] standard normal, reproducible on every device."""
    return torch.randn(n, generator=generator(seed, name, step, purpose), dtype=torch.float32, device="cpu").to(device)

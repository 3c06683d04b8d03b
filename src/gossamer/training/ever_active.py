"""How far a method has explored: packed records of which weights were ever active.

In-time over-parameterisation (Liu et al., 2021): R_s = |weights active at any time| / N. A sparse run whose R_s comes
near 1 has tried every weight of the dense network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.training.weights import Masked


def pack(mask: Tensor) -> Tensor:
    """A bool tensor as uint8[ceil(n / 8)] on the CPU, row-major, first element in the highest bit.

    Example:
        >>> pack(torch.tensor([True, False, False, True])).tolist()
        [144]
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy()))


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: bool[shape] on the CPU.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        raise ValueError(f"expected {-(-count // 8)} bytes for a mask of shape {shape}, got {bits.numel()}")
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)).view(shape)


class EverActive:
    """Which weights were active at any time, one bit each; `removed` counts those sliced away by a compaction."""

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}
        self.removed: dict[str, int] = {}

    def record(self, tensor: Masked) -> None:
        """Add the present mask of `tensor`."""
        bits = pack(tensor.mask)
        self.bits[tensor.name] = bits | self.bits[tensor.name] if tensor.name in self.bits else bits

    def mask(self, tensor: Masked) -> Tensor:
        """bool in the parameter's shape and device: active now or at any event before."""
        return unpack(self.bits[tensor.name], tuple(tensor.mask.shape)).to(tensor.mask.device)

    def slice(self, tensor: Masked, kept: Tensor) -> None:
        """Keep the True elements of `kept`[old shape]; call before the mask is sliced."""
        before = self.mask(tensor).cpu()
        self.removed[tensor.name] = self.removed.get(tensor.name, 0) + int((before & ~kept.cpu()).sum())
        self.bits[tensor.name] = pack(before[kept.cpu()])

    def count(self, tensor: Masked) -> int:
        """Weights of `tensor` that were ever active."""
        return tensor.weights(self.mask(tensor)) + self.removed.get(tensor.name, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"bits": dict(self.bits), "removed": dict(self.removed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bits, self.removed = dict(state["bits"]), dict(state["removed"])

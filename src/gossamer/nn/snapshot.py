"""Is what was derived from some tensors still what would be derived from them?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gossamer.pattern.check import is_recording, require

_FEW = 8192


class Snapshot:
    """What tensors held when something was derived from them.

    On a CPU contents are compared, so that it does not matter who wrote and how: in place, through `.data` or numpy, by
    another process. On an accelerator that would be a sync: there the tensors must be the same, unchanged by their
    version counters, which writes through `.data` pass by.
    """

    def __init__(self, *tensors: Tensor) -> None:
        # A reference, where contents are not kept, also sees to it that nothing else gets the same address.
        with torch.inference_mode(False):
            self.held = [x.detach().clone() if x.device.type == "cpu" else x for x in tensors]
        self.versions = [_version(x) for x in tensors]

    def is_of(self, *tensors: Tensor, rule: str) -> bool:
        """Do these tensors hold the same? Inside torch.compile an assertion that they do, which prints `rule`."""
        if [(x.shape, x.dtype, x.device) for x in tensors] != [(x.shape, x.dtype, x.device) for x in self.held]:
            return False
        pairs = list(zip(tensors, self.held, strict=True))
        if torch.compiler.is_compiling():
            for now, then in pairs:
                if now.device.type == "cpu":
                    require((now == then).all(), lambda: rule, rule)
            return True
        if is_recording():
            return True
        return all(
            _equal(now, then) if now.device.type == "cpu" else now is then and _version(now) == version
            for (now, then), version in zip(pairs, self.versions, strict=True)
        )


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.nbytes < _FEW:
        return torch.equal(x, y)
    return np.array_equal(x.detach().numpy(), y.numpy())  # starts later, but compares bytes ten times as fast


def _version(x: Tensor) -> int | float:
    if torch.compiler.is_compiling() or x.is_inference():  # there is no count: never the same
        return float("nan")
    return x._version

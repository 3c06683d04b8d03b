"""The kernels of one backend by the names of their functions: `cpu.gather(x, ...)`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import gossamer.ops
from gossamer.ops.registration import MODULES

FILES = {"mask_": "mask", "topk_mask": "select", "skip_pack": "skip_conv", "keep_bits": "relu_bits", **MODULES}
assert gossamer.ops  # importing it registers every op


class Kernels:
    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __getattr__(self, function: str) -> Callable[..., Any]:
        file = FILES.get(function, function)
        kernel: Callable[..., Any] = getattr(import_module(f"gossamer.kernels.{self.backend}.{file}"), function)
        return kernel


cpu, reference = Kernels("cpu"), Kernels("reference")

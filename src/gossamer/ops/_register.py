"""One registration for every verb: schema, fake, and a launcher per device that imports its kernels when first called.

Choosing a kernel is the dispatcher's work, by the device of the tensors. Asking for one by name (`backend=`) either
gets it or raises; nothing falls back.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.kernels import reference

Backend = Literal["reference", "cpu", "triton"]
_DEVICE_OF = {"cpu": "cpu", "triton": "cuda"}
_NEEDS = {
    "cpu": "the compiled extension gossamer._native (reinstall gossamer with a C++ compiler at hand)",
    "triton": "triton: pip install gossamer[triton]",
}


@functools.cache
def _kernel(backend: str, verb: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(f"gossamer.kernels.{backend}.{verb}"), verb)
    except ImportError as error:
        raise RuntimeError(f"gossamer.ops.{verb} with backend={backend!r} needs {_NEEDS.get(backend)}") from error


def _contiguous(*args: Any) -> tuple[Any, ...]:
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)


def _launcher(backend: str, verb: str) -> Callable[..., Any]:
    """A function that looks its kernel up at the first call and hands it contiguous tensors."""
    return lambda *args: _kernel(backend, verb)(*_contiguous(*args))


def register(verb: str, schema: str, fake: Callable[..., Any]) -> Callable[[Backend | None], Callable[..., Any]]:
    """Define `gossamer::verb` and return the function that maps a backend to something callable on raw tensors."""
    name = f"gossamer::{verb}"
    torch.library.define(name, schema)
    torch.library.impl(name, "CPU", _launcher("cpu", verb))
    torch.library.impl(name, "CUDA", _launcher("triton", verb))
    torch.library.register_fake(name, fake)
    op = getattr(torch.ops.gossamer, verb).default
    oracle = getattr(reference, verb)

    def on(backend: Backend | None) -> Callable[..., Any]:
        return (lambda *args: oracle(*_contiguous(*args))) if backend == "reference" else op

    return on


def check_backend(backend: Backend | None, name: str, x: Tensor) -> None:
    """Refuse a backend that does not exist or cannot take `x`, the argument called `name`."""
    if backend is None or backend == "reference":
        return
    if backend not in _DEVICE_OF:
        raise ValueError(f"backend must be None, 'reference', 'cpu' or 'triton', got {backend!r}")
    if x.device.type != _DEVICE_OF[backend]:
        raise ValueError(f"backend={backend!r} needs {name} on {_DEVICE_OF[backend]}, got {name} on {x.device}")

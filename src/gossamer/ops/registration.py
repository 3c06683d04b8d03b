"""One registration for every op: schema, fake, and a launcher per device that imports its kernels when first called.

Choosing a kernel is the dispatcher's work, by the device of the tensors. Asking for one by name (`backend=`) either
gets it or raises; nothing falls back.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gossamer.ops.transforms import check_tangents

Backend = Literal["reference", "cpu", "triton"]
HALF = (torch.bfloat16, torch.float16)
F = TypeVar("F", bound=Callable[..., object])
_DEVICE_OF = {"cpu": "cpu", "triton": "cuda"}
_NEEDS = {
    "cpu": "the compiled extension gossamer._native (reinstall gossamer with a C++ compiler at hand)",
    "triton": "triton: pip install gossamer[triton]",
}


@functools.cache
def load_kernel(backend: str, module: str, verb: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(f"gossamer.kernels.{backend}.{module}"), verb)
    except ImportError as error:
        raise RuntimeError(f"gossamer.ops.{verb} with backend={backend!r} needs {_NEEDS.get(backend)}") from error


def readable(x: Tensor) -> Tensor:
    """x itself if each matrix of it is row-major or column-major (a gap between rows is fine), else a copy that is."""
    high, wide = x.shape[-2:]
    down, along = x.stride()[-2:]
    if (along == 1 and (down >= wide or high == 1)) or (down == 1 and (along >= high or wide == 1)):
        return x
    return x.contiguous()


def _launcher(kernel: Callable[[], Callable[..., Any]], strided: tuple[int, ...]) -> Callable[..., Any]:
    """A function that looks its kernel up when called and hands it tensors laid out as it wants them."""

    def launch(*args: Any) -> Any:
        laid_out = [
            (readable(arg) if at in strided else arg.contiguous()) if isinstance(arg, Tensor) else arg
            for at, arg in enumerate(args)
        ]
        return kernel()(*laid_out)

    return launch


def in_float32(like: int, stored: int | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a CPU kernel take half floats: sums run in float32, and the result is rounded once.

    Args:
        like: position of the argument that has the dtype of the result.
        stored: position of the argument that the kernel itself reads as bfloat16.
    """

    def of(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*args: Any) -> Any:
            dtype = args[like].dtype
            if dtype not in HALF:
                return kernel(*args)
            short = [isinstance(arg, Tensor) and arg.dtype in HALF for arg in args]
            if stored is not None and args[stored].dtype == torch.bfloat16:
                short[stored] = False
            return kernel(*(arg.float() if widen else arg for arg, widen in zip(args, short, strict=True))).to(dtype)

        return launch

    return of


def register(
    verb: str,
    schema: str,
    fake: Callable[..., Any],
    *,
    strided: tuple[int, ...] = (),
    module: str | None = None,
    half: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda kernel: kernel,
) -> Callable[[Backend | None], Callable[..., Any]]:
    """Define `gossamer::verb` and return the function that maps a backend to something callable on raw tensors.

    Kernels get contiguous tensors, but the arguments at the positions `strided` as row-major or transposed matrices.
    `module` is the file of the kernels where it is not named like the verb; `half` makes the CPU's take half floats.
    """
    file = module or verb
    name = f"gossamer::{verb}"
    torch.library.define(name, schema)
    torch.library.impl(name, "CPU", half(_launcher(lambda: load_kernel("cpu", file, verb), strided)))
    torch.library.impl(name, "CUDA", _launcher(lambda: load_kernel("triton", file, verb), strided))
    torch.library.register_fake(name, fake)
    op = getattr(torch.ops.gossamer, verb).default
    reference = load_kernel("reference", file, verb)  # now, since torch.compile traces through it and cannot import
    oracle = _launcher(lambda: reference, strided)

    def on(backend: Backend | None) -> Callable[..., Any]:
        kernel = oracle if backend == "reference" else op
        if forward_ad._current_level < 0:
            return kernel

        def launch(*args: Any) -> Any:
            # A kernel would drop a tangent, and a derivative of zero is a wrong number.
            check_tangents(f"gossamer.ops.{verb}", args)
            return kernel(*args)

        return launch

    return on


def check_backend(backend: Backend | None, name: str, x: Tensor) -> None:
    """Refuse a backend that does not exist or cannot take `x`, the argument called `name`."""
    if backend is None or backend == "reference":
        return
    if backend not in _DEVICE_OF:
        raise ValueError(f"backend must be None, 'reference', 'cpu' or 'triton', got {backend!r}")
    if x.device.type != _DEVICE_OF[backend]:
        raise ValueError(f"backend={backend!r} needs {name} on {_DEVICE_OF[backend]}, got {name} on {x.device}")


def constant_in_graphs(function: F) -> F:
    """Under torch.compile the function runs once, while the graph is made, and its result is a constant of it.

    torch.compiler.assume_constant_result without what it imports: with it, `import gossamer.ops` would bring triton.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function

"""One registration for every op: schema, fake, and its kernels, `gossamer.kernels.BACKEND.MODULE`, loaded when needed.

    dsd_on = register("dsd", schema, fake)      kernels of each device; dsd_on(backend) is called on raw tensors
    append_on = register("append", "(Tensor(a!) pool, Tensor rows, Tensor places) -> ()")          writes into pool
    capture = register_opaque("capture", schema, run, fake)      Python that no graph may look into, on any device

The dispatcher chooses a kernel by the device of the tensors. Asking for one by name (`backend=`) either gets it or
raises; nothing falls back.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gossamer import extras, kernels
from gossamer.ops.mutation import Writes, guard, refuse_gradients, writes_of
from gossamer.ops.together import OTHER_LAYOUTS, check_devices, refuse_layouts
from gossamer.ops.transforms import check_tangents

Backend = Literal["reference", "cpu", "triton"]
HALF = (torch.bfloat16, torch.float16)
F = TypeVar("F", bound=Callable[..., object])
MODULES: dict[str, str] = {}
"""The file of the kernels of every op, in each folder of `gossamer.kernels` that has them."""

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")
_DEVICE_OF = {"cpu": "cpu", "triton": "cuda"}


@functools.cache
def load_kernel(backend: str, module: str, op: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(f"gossamer.kernels.{backend}.{module}"), op)
    except ImportError as error:
        if not (Path(kernels.__path__[0]) / backend / f"{module}.py").exists():
            raise RuntimeError(f"gossamer.ops.{op} has no kernel for backend={backend!r}") from error
        needs = "the compiled extension gossamer._native (reinstall gossamer with a C++ compiler at hand)"
        if backend == "triton":
            needs = f"triton: {extras.command('triton')} (gossamer[triton])"
        raise RuntimeError(f"gossamer.ops.{op} with backend={backend!r} needs {needs}") from error


def is_readable(x: Tensor) -> bool:
    """Whether each matrix of x is row-major or column-major; a gap between rows is fine."""
    high, wide = x.shape[-2:]
    down, along = x.stride()[-2:]
    return (along == 1 and (down >= wide or high == 1)) or (down == 1 and (along >= high or wide == 1))


def _launcher(
    kernel: Callable[[], Callable[..., Any]], strided: tuple[int, ...], anyhow: tuple[int, ...], writes: Writes
) -> Callable[..., Any]:
    """A function that looks its kernel up when called and hands it tensors laid out as it wants them."""

    def laid_out(at: int, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [laid_out(at, each) for each in x]
        if not isinstance(x, Tensor) or at in anyhow or (is_readable(x) if at in strided else x.is_contiguous()):
            return x
        if at in writes.written:  # what is written into a copy is lost
            raise ValueError(
                f"{writes.arguments[at]} must be contiguous, for gossamer.ops.{writes.op} writes it in place, got "
                f"shape {tuple(x.shape)} with strides {x.stride()}"
            )
        return x.contiguous()

    def launch(*args: Any) -> Any:
        return kernel()(*[laid_out(at, arg) for at, arg in enumerate(args)])

    return launch


def _together(launch: Callable[..., Any], writes: Writes) -> Callable[..., Any]:
    """The same for tensors on one device, which it asks; the CPU's kernels ask as they take an address."""

    def checked(*args: Any) -> Any:
        if not torch.compiler.is_compiling():  # a graph of the reference is made of torch's own operators, which ask
            refuse_layouts(writes.arguments, args)
            check_devices(writes.arguments, args)
        return launch(*args)

    return checked


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


def _define(op: str, schema: str, fake: Callable[..., Any] | None) -> tuple[torch._ops.OpOverload, Writes]:
    """The op, and which arguments it writes. `fake` may be None for an op that returns nothing."""
    _LIBRARY.define(op + schema)
    overload: torch._ops.OpOverload = getattr(torch.ops.gossamer, op).default
    writes = writes_of(overload)
    if fake is None and overload._schema.returns:
        raise ValueError(f"fake must say what {op} returns")

    def shapes(*args: Any) -> Any:
        # torch comes here as soon as one tensor is on meta, and would hand out memory of the others' device unwritten.
        check_devices(writes.arguments, args)
        return None if fake is None else fake(*args)

    torch.library.register_fake(overload, shapes, lib=_LIBRARY)
    for key in OTHER_LAYOUTS:
        _LIBRARY.impl(op, lambda *args: refuse_layouts(writes.arguments, args), key)
    if writes.written:
        guard(_LIBRARY, overload, writes)
    return overload, writes


def register(
    op: str,
    schema: str,
    fake: Callable[..., Any] | None = None,
    *,
    strided: tuple[int, ...] = (),
    anyhow: tuple[int, ...] = (),
    module: str | None = None,
    half: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> Callable[[Backend | None], Callable[..., Any]]:
    """Define `gossamer::op` and return the function that maps a backend to something callable on raw tensors.

    Args:
        schema: arguments and results; `Tensor(a!)` is written in place (`mutation.py`).
        fake: shapes and dtypes of the results; None where there are none.
        strided: positions of arguments that kernels get as row-major or transposed matrices; others are contiguous.
        anyhow: positions of arguments that kernels get as they are, such as a mask that is expanded.
        module: the file of the kernels where it is not named like the op.
        half: makes the CPU's kernel take half floats, see `in_float32`; not of an op that writes.
    """
    file = MODULES[op] = module or op
    overload, writes = _define(op, schema, fake)
    if half is not None and writes.written:
        raise ValueError(f"half must be None for {op}, which writes {writes.names}: a copy would be lost")
    on_cpu = _launcher(lambda: load_kernel("cpu", file, op), strided, anyhow, writes)
    _LIBRARY.impl(op, on_cpu if half is None else half(on_cpu), "CPU")
    on_gpu = _launcher(lambda: load_kernel("triton", file, op), strided, anyhow, writes)
    _LIBRARY.impl(op, _together(on_gpu, writes), "CUDA")
    reference = load_kernel("reference", file, op)  # now, since torch.compile traces through it and cannot import
    plain = _together(_launcher(lambda: reference, strided, anyhow, writes), writes)

    def oracle(*args: Any) -> Any:
        refuse_gradients(writes, args)
        return plain(*args)

    def on(backend: Backend | None) -> Callable[..., Any]:
        kernel: Callable[..., Any] = overload
        if backend == "reference":
            kernel = oracle if writes.written else plain
        if forward_ad._current_level < 0:
            return kernel

        def launch(*args: Any) -> Any:
            # A kernel would drop a tangent, and a derivative of zero is a wrong number.
            check_tangents(f"gossamer.ops.{op}", args)
            return kernel(*args)

        return launch

    return on


def register_opaque(
    op: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Define `gossamer::op` as `run` on any device: Python that a compiled graph calls and does not look into.

    What it needs beside tensors and numbers comes by its handle (`gossamer.handles`).
    """
    overload, _ = _define(op, schema, fake)
    _LIBRARY.impl(op, run, "CompositeExplicitAutograd")
    return overload


def check_backend(backend: Backend | None, name: str, x: Tensor) -> None:
    """Refuse a backend that does not exist or cannot take `x`, the argument called `name`."""
    if backend is None or backend == "reference":
        return
    if not isinstance(backend, str) or backend not in _DEVICE_OF:
        raise ValueError(f"backend must be None, 'reference', 'cpu' or 'triton', got {backend!r}")
    if x.device.type != _DEVICE_OF[backend]:
        raise ValueError(f"backend={backend!r} needs {name} on {_DEVICE_OF[backend]}, got {name} on {x.device}")


def constant_in_graphs(function: F) -> F:
    """Under torch.compile the function runs once, while the graph is made, and its result is a constant of it.

    torch.compiler.assume_constant_result without what it imports: with it, `import gossamer.ops` would bring triton.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function

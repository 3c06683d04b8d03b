"""Who computes: every law holds on each of these, over the same table of cases.

`kernels/{reference,cpu,triton}` hold the same functions with the same signatures, so a backend is called by op:

    offsets, indices = backend("detect", x, 8, 16, capacity, True)
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import message
import pytest
import torch
from calls import kernel_results
from hypothesis import HealthCheck, settings

from gossamer import _native
from gossamer.ops.registration import MODULES

# The backend is the same for all examples of a test.
examples = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Backend:
    """One of `gossamer.kernels`, with the instruction set or the device that it is tried on."""

    name: str
    kernels: str
    isa: str | None = None
    device: str = "cpu"

    def __call__(self, op: str, *args: Any) -> Any:
        """What the kernel returns for these arguments, on the CPU."""
        results = self.results(op, args)
        return results[0] if len(results) == 1 else tuple(results)

    def results(self, op: str, args: tuple[Any, ...], writes: tuple[int, ...] = ()) -> list[torch.Tensor]:
        """What the kernel returns, and what the arguments at the positions `writes` hold after it, on the CPU."""
        module = f"gossamer.kernels.{self.kernels}.{MODULES[op]}"
        if self.name == "triton-interpreted":
            return interpreted("calls", "kernel_results", module, op, args, writes)
        there = tuple(arg.to(self.device) if isinstance(arg, torch.Tensor) else arg for arg in args)
        return [each.cpu() for each in kernel_results(module, op, there, writes)]

    @property
    def slow(self) -> bool:
        """The interpreter takes milliseconds for each program of a grid."""
        return self.name == "triton-interpreted"

    @property
    def compiles(self) -> bool:
        """Triton compiles every kernel again for strides of another kind."""
        return self.kernels == "triton"

    @property
    def few_dtypes(self) -> bool:
        """The C++ products are of float32 and float64."""
        return self.kernels == "cpu"

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Makes it run what its name says, or skips the test."""
        if self.kernels == "triton":
            pytest.importorskip("triton", reason="triton is not installed: pip install triton")
        if self.device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        if self.isa is None:
            yield
            return
        if self.isa not in _native.available_isas():
            pytest.skip(f"this CPU does not run {self.isa}")
        before = _native.isa()
        _native.set_isa(self.isa)
        try:
            yield
        finally:
            _native.set_isa(before)


REFERENCE = Backend("reference", "reference")
ALL = _native.ops_of("scalar")
# What has code of its own for a few ops only is tested with these.
CPU = tuple(Backend(f"cpu-{isa}", "cpu", isa) for isa in _native.built_isas() if _native.ops_of(isa) == ALL)
TRITON = Backend("triton-interpreted", "triton"), Backend("cuda", "triton", device="cuda")
EVERY = (REFERENCE, *CPU, *TRITON)


def on(backends: Iterable[Backend], name: str = "", cases: Iterable[Any] = (), *, small: Callable[[Any], bool] = bool):
    """One test for each backend, or for each backend and case; the interpreter takes those of the cases that are small.

    The ids are "cpu-avx2-ragged"; a case of several values is a tuple.
    """
    params, cases = [], list(cases)
    for backend in backends:
        marks = [pytest.mark.gpu] if backend.device == "cuda" else []
        if not name:
            params.append(pytest.param(backend, id=backend.name, marks=marks))
            continue
        for case in cases:
            if not backend.slow or small(case):
                values = case if isinstance(case, tuple) and "," in name else (case,)
                label = "-".join(str(getattr(value, "name", value)) for value in values)
                params.append(pytest.param(backend, *values, id=f"{backend.name}-{label}", marks=marks))
    names = f"backend, {name}" if name else "backend"
    return pytest.mark.parametrize(names, params, indirect=["backend"])


@cache
def _interpreter() -> Callable[[str, str, tuple[Any, ...]], Any]:
    """A process in which Triton's kernels are interpreted; it ends when its input does, with this one."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("interpreter.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    atexit.register(process.communicate)

    def call(module: str, name: str, args: tuple[Any, ...]) -> Any:
        message.send(process.stdin, (module, name, args))
        fine, answer = message.receive(process.stdout)
        if not fine:
            raise answer
        return answer

    return call


def interpreted(module: str, name: str, *args: Any) -> Any:
    """Call a function of a module in the process that interprets; `module` may be one of this folder."""
    return _interpreter()(module, name, args)

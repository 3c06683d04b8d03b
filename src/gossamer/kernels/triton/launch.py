"""How a product is launched: block sizes by shape and dtype, and the next choice where one does not compile.

Block sizes follow from shapes and dtypes alone, never from a timing: the order of a sum depends on them, and results
are the same bits on every run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

Blocks = dict[str, int]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_refused: set[Any] = set()


def check_float(name: str, x: Tensor) -> None:
    """Refuse a dtype that the products do not take."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be one of {', '.join(map(str, _FLOATS))}, got {x.dtype}")


def precision(x: Tensor) -> str:
    """How float32 is multiplied: as torch's own dense product is told to (`fp32_precision`; exactly, by default)."""
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def power(size: int, low: int, high: int) -> int:
    """The power of two that covers `size`, within [low, high]."""
    return max(low, min(high, triton.next_power_of_2(max(size, 1))))


def blocks(m: int, n: int, x: Tensor, *, deep: bool = False) -> Iterator[Blocks]:
    """Block sizes for a result of m x n elements (m: the rows that share an operand), best first.

    Tensor cores want BK of 64 and wide blocks: every row of B that is read serves BM rows. Without them (float32 as
    IEEE has it) operands live in registers, and blocks are small. float64 goes row by row: it is there for checking
    gradients, and Triton 3.6 has no `tl.dot` for it.

    deep: a load of 4 or 8 bytes in the loop gives the address of another. Triton then spends every other stage of its
    pipeline on the first, so the same number of buffers takes twice the stages.
    """
    if m == 1 or x.itemsize == 8:
        bm, bn, bk, warps, stages = 1, power(n, 32, 512 // x.itemsize), 16, 4, 3
    elif x.itemsize == 2 or precision(x) == "tf32":
        bm = power(m, 16, 128)
        bn = power(n, 16, 256 if bm >= 64 else 128)
        bk = 128 // x.itemsize
        warps, stages = 8 if bm * bn > 8192 else 4, 3 if bm >= 64 else 4
    else:
        bm = power(m, 2, 64)
        bn, bk, warps, stages = power(n, 16, 64), 16, 4, 2
    if deep:
        stages = 2 * stages - 1
    yield {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": stages}
    yield {"BM": bm, "BN": bn, "BK": bk, "num_warps": warps, "num_stages": 1}
    yield {"BM": bm, "BN": max(bn // 2, 16), "BK": max(bk // 2, 16), "num_warps": 4, "num_stages": 2}


def side_of_block(b: Tensor, run: int) -> int:
    """The longest side of a block when b is read in runs of so many adjacent elements.

    Runs that are no whole number of 16 bytes come element by element, each with a pointer in registers.
    """
    return 64 if run < 128 and run * b.itemsize % 16 else 512


def of_compiler(error: Exception) -> bool:
    """Whether a launch failed before it began: some Triton versions cannot compile some block sizes (3.3 to 3.6
    lose a value in their removal of layout conversions), and some need more shared memory than a device has."""
    known = (OutOfResources, PTXASError, CompileTimeAssertionFailure)
    return isinstance(error, known) or "PassManager" in str(error)


def launch(
    kernel: Any, grid: Callable[[Blocks], tuple[int, ...]], choices: Iterator[Blocks], *args: Any, **constants: Any
) -> Blocks:
    """Launch with the first choice that compiles, and say which that was."""
    error: Exception | None = None
    for choice in choices:
        if _refused and _key(kernel, choice, args, constants) in _refused:
            continue
        try:
            kernel[grid(choice)](*args, **constants, **choice)
        except Exception as failed:
            if not of_compiler(failed):
                raise
            _refused.add(_key(kernel, choice, args, constants))
            logging.getLogger(__name__).warning("%s does not compile with %s", kernel.__name__, choice)
            error = failed
        else:
            return choice
    raise RuntimeError(f"{kernel.__name__}: Triton {triton.__version__} compiles none of its block sizes") from error


def _key(kernel: Any, choice: Blocks, args: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    types = tuple(arg.dtype if isinstance(arg, Tensor) else arg is None for arg in args)
    return kernel.__name__, types, tuple(choice.items()), tuple(constants.items())

"""Do a product exactly the way a plan says, the search for tiles included: what `tune` and `regret` time."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from gossamer.planner.plan import Problem, Sparse
from gossamer.planner.tiles import Tile, resolve


def kernel(device: str, verb: str) -> Callable[..., Any]:
    """A kernel of the CPU or the GPU by name; RuntimeError if there is none."""
    backend = "cpu" if device == "cpu" else "triton"
    try:
        return getattr(import_module(f"gossamer.kernels.{backend}.{verb}"), verb)
    except ImportError as error:
        raise RuntimeError(f"there is no kernel {verb!r} for device {device!r}: {error}") from error


def find(s: Tensor, tile: Tile) -> tuple[Tensor, Tensor, int, int]:
    """(offsets, indices, bm, bk) of the tiles of s that hold a nonzero."""
    bm, bk = resolve(tile, (s.shape[0], s.shape[1]))
    capacity = -(-s.shape[0] // bm) * -(-s.shape[1] // bk)
    return *kernel(s.device.type, "detect")(s, bm, bk, capacity, True), bm, bk


def execute(tile: Tile | None, a: Tensor, b: Tensor, sparse: Sparse = "a") -> Tensor:
    """a @ b, at the tiles of the sparse operand that hold a nonzero, or dense when tile is None.

    >>> a = torch.eye(4)
    >>> torch.equal(execute((2, 1), a, a), a)
    True
    """
    if tile is None:
        return a @ b
    problem = Problem.of(a, b, sparse)
    s, d = (a, b) if sparse == "a" else (b.mT, a.mT)
    if sparse == "b" and b.dim() == 2 and a.dim() == 3:
        d = a.flatten(0, 1).mT
    flat = s.reshape(problem.rows, problem.k).contiguous()
    index = find(flat, problem.own(tile))
    batched = d if d.dim() == 3 else d.unsqueeze(0)
    # A product with the transposed operand comes back as a transposed view of what the caller wants.
    column_major = sparse == "b" and s.dim() == 2
    c = kernel(flat.device.type, "gather_mm")(flat, *index, batched, column_major)
    if sparse == "a":
        return c.view(*a.shape[:-1], problem.n)
    return c.mT.reshape(*a.shape[:-1], problem.rows) if s.dim() == 2 else c.view(*s.shape[:-1], problem.n).mT

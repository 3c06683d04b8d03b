"""Assertions whose tolerance is derived, not chosen.

A sum of n rounded products obeys |computed - exact| <= gamma(n) * sum |a_i b_i| in any order of summation, with
gamma(n) = n u / (1 - n u) and u the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1). Integers small enough that every partial sum is exact leave no error at all, and then bits must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gossamer.kernels.bits import as_bits
from gossamer.pattern import Pattern


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype) -> float:
    """Relative error bound of a sum of `terms` rounded products accumulated in `dtype`.

    >>> gamma(1, torch.float64) < 1.2e-16
    True
    """
    n_u = terms * unit_roundoff(dtype)
    if n_u >= 1:
        raise ValueError(f"no bound exists for {terms} terms accumulated in {dtype}")
    return n_u / (1 - n_u)


def assert_within(actual: Tensor, oracle: Tensor, bound: Tensor) -> None:
    """|actual - oracle| <= bound, element by element, in float64; NaN and infinities must agree exactly.

    The rounding of the oracle to `actual.dtype` is allowed for on top.
    """
    if actual.shape != oracle.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}")
    finite = oracle.isfinite()
    if not torch.equal(actual.double()[~finite].nan_to_num(), oracle.double()[~finite].nan_to_num()):
        raise AssertionError("NaN or infinity in other places than the oracle's")
    error = (actual.double() - oracle.double()).abs()[finite]
    rounding = oracle.double().abs() * unit_roundoff(actual.dtype) + torch.finfo(actual.dtype).smallest_normal
    allowed = (bound.double().expand_as(oracle) + rounding)[finite]
    if not bool((error <= allowed).all()):  # written so that a NaN in `actual` fails
        worst = (error / allowed).nan_to_num(nan=float("inf")).max().item()
        raise AssertionError(f"error is {worst:.3g} times its bound in {int((~(error <= allowed)).sum())} elements")


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Same dtype, shape, device and bits: NaN equals NaN of the same payload, -0.0 differs from 0.0."""
    for what in ("dtype", "shape", "device"):
        if getattr(actual, what) != getattr(expected, what):
            raise AssertionError(f"{what} {getattr(actual, what)}, expected {getattr(expected, what)}")
    if not torch.equal(as_bits(actual), as_bits(expected)):
        different = (actual != expected).nonzero()
        where = f", first at {different[0].tolist()}" if len(different) else " in signs of zero or NaN payloads"
        raise AssertionError(f"bits differ in {len(different)} elements{where}")


def assert_same_tiles(pattern: Pattern, tiles: Tensor, *, ordered: bool = False) -> None:
    """The pattern is valid and its tiles are exactly the nonzero entries of bool[tile_rows, tile_cols].

    Walks the index itself with plain Python, so that it shares no code with the pattern's own methods.
    """
    pattern.validate()
    if tuple(tiles.shape) != pattern.grid:
        raise AssertionError(f"grid {pattern.grid}, expected {tuple(tiles.shape)}")
    offsets, indices = pattern.row_offsets().tolist(), pattern.indices.flatten().tolist()
    found = [(row, col) for row in range(pattern.grid[0]) for col in indices[offsets[row] : offsets[row + 1]]]
    expected = [(row, col) for row, col in tiles.nonzero().tolist()]
    if (found if ordered else sorted(found)) != expected:
        missing, extra = set(expected) - set(found), set(found) - set(expected)
        raise AssertionError(f"missing tiles {sorted(missing)[:8]}, extra tiles {sorted(extra)[:8]} (or their order)")


@contextmanager
def assert_no_recompile() -> Iterator[None]:
    """Nothing inside the block makes `torch.compile` build another graph."""
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    yield
    built = counters["stats"]["unique_graphs"] - before
    if built:
        raise AssertionError(f"{built} graphs were compiled, expected none")

"""matmul: a dense product one of whose operands holds zeros, which are found at run time and not multiplied (PIT).

c = (a at P) @ b, P the tiles of a that hold a nonzero
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.measure import clock
from gossamer.ops import dense
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.gathered import GatherMm
from gossamer.ops.index import check_pattern
from gossamer.ops.registration import Backend, check_backend
from gossamer.ops.tiles import detect, transpose
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern
from gossamer.pattern.check import check_pair
from gossamer.planner import Plan, Planner
from gossamer.planner import plan as plan_for
from gossamer.planner.call_sites import Report
from gossamer.planner.operands import check_operands

Axis = Literal["auto", "m", "k", "n"]
Tile = tuple[int, int]

BAND = 32
"""Rows that share one list of columns when zeros are skipped along k: tile (32, 1)."""

SITES = Planner()
"""Plans of calls that bring none. A sample of an operand costs percents of a product: few calls take one."""


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    sparse: Literal["a", "b"] = "a",
    tile: Tile | Literal["auto"] = "auto",
    axis: Axis = "auto",
    index: Pattern | None = None,
    plan: Plan | Planner | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """a @ b, skipping the tiles of one operand that hold only zeros. Differentiable to any order.

    The sparse operand is an ordinary tensor: it is read where it lies, no converted copy of it is made. Zeros are
    looked for inside this call, or once with `index = gs.detect(a, tile)` for several products.

    Args:
        a: [m, k] or [batch, m, k], float64, float32, bfloat16 or float16.
        b: [k, n], or [batch, k, n] with a batched a, of a's dtype; row-major or a transposed view.
        sparse: which operand holds zeros. "b" is computed as the transposed problem, for which b.mT must be
            contiguous (the weight of a linear, `w.t()`), else it is copied.
        tile: (rows, columns) of the tiles of the sparse operand to skip by. "auto" takes the tile that `axis` or
            `index` imply, and without those what `plan` says.
        axis: the axis whose zero slices are skipped: "m" whole rows of a, "n" whole columns of b, "k" columns of a
            (rows of b) within bands of 32; with a tile given, only a check: the tile must have extent 1 along it.
        index: the tiles to multiply, of the sparse operand (a batched a: of `a.flatten(0, 1)`). What it
            leaves out takes no part even if it is not zero.
        plan: what to do when tile, axis and index are left open: a `gossamer.planner.plan(...)` made before, or a
            `gossamer.planner.Planner` of your own. None asks one that all such calls share: it samples the
            operand (on the host: a device sync) at the first call of each call site and at every 16th, and on a CPU
            times these calls and now and then another choice in their place, so that the same operands may be
            multiplied in another order later; under `torch.use_deterministic_algorithms` it
            samples at every call, and the choice depends on the operands alone.
        backend: None for the kernels of a's device; "cpu", "triton" or "reference" to insist.

    Returns:
        c [m, n] or [batch, m, n]. Skipped is not multiplied by zero: NaN or infinity opposite a skipped tile does not
        reach c. A plan may choose the dense product, in which it does; that is done by the fastest engine
        (`gossamer.ops.dense`), and their results differ by rounding.

        Gradients: those of `(a * mask) @ b` for the sparse operand a, mask being 1 at the tiles of the index: zero
        outside them. Where a plan chose, mask is 1 at the nonzero elements, whatever it chose.

        bfloat16 and float16 are summed in float32 and rounded once, as in `dsd`. A CPU's kernel reads them widened for
        the call, and a plan takes the dense product there. Autocast changes no dtype.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed, or a choice
        (everything on "auto") inside torch.compile.

    Source: PIT (SOSP 2023), section 3: micro-tiles, SRead and SWrite.

    >>> a = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> matmul(a, torch.eye(2), axis="m", backend="reference")
    tensor([[0., 0.],
            [1., 2.]])
    >>> index = detect(a, (1, 1), backend="reference")
    >>> matmul(a, 3 * torch.eye(2), index=index, backend="reference")
    tensor([[0., 0.],
            [3., 6.]])
    """
    check_transforms("gossamer.ops.matmul", a, b)
    check_operands(a, b, sparse)
    check_backend(backend, "a", a)
    if sparse == "b" and b.dim() == 2 and a.dim() == 3:
        rest: dict[str, Any] = {"tile": tile, "axis": axis, "index": index, "plan": plan, "backend": backend}
        c = matmul(a.flatten(0, 1), b, sparse=sparse, **rest)
        return c.unflatten(0, a.shape[:2])
    if tile == "auto" and axis == "auto" and index is None:
        return _planned(a, b, sparse, plan, backend)
    if plan is not None:
        raise ValueError("plan must be None beside tile, axis or index, which leave nothing to decide")
    product = _skipping(a, b, sparse, tile, axis, index, backend)
    assert product is not None  # without a plan
    return product


def _planned(
    a: Tensor, b: Tensor, sparse: Literal["a", "b"], plan: Plan | Planner | None, backend: Backend | None
) -> Tensor:
    """As a plan says; now and then its seconds are reported to the planner, so that what it predicts comes true."""
    planner: Planner | None = None
    report: Report | None = None
    if isinstance(plan, Plan):
        chosen = plan
    elif torch.compiler.is_compiling():
        raise RuntimeError(
            "matmul must read its operand on the host to plan, which torch.compile cannot do: "
            "give tile, axis, index, or a plan made outside"
        )
    elif plan is not None and not isinstance(plan, Planner):
        raise TypeError(f"plan must come from gossamer.planner, got {type(plan).__name__}")
    elif plan is None and torch.are_deterministic_algorithms_enabled():
        chosen = plan_for(a, b, sparse)
    else:
        planner = plan or SITES
        chosen, report = planner.ask(a, b, sparse)
    begin = 0.0 if report is None else clock.now()
    left, right = (AtNonzeros.call(a), b) if sparse == "a" else (a, AtNonzeros.call(b))
    c = None if chosen.tile is None else _skipping(left, right, sparse, plan=chosen, backend=backend)
    if c is None:
        c = _dense(left, right)
        if chosen.tile is not None:
            report = None  # of a product that the plan did not mean
            if planner is not None:
                planner.reconsider(a, b, sparse)
    if report is not None:
        report(clock.now() - begin)
    return c


def _skipping(
    a: Tensor, b: Tensor, sparse: Literal["a", "b"], tile: Tile | Literal["auto"] = "auto", axis: Axis = "auto",
    index: Pattern | None = None, backend: Backend | None = None, plan: Plan | None = None,
) -> Tensor | None:  # fmt: skip
    """The product; None where so many more tiles are found than the plan's sample showed that dense is faster."""
    s, d = (a, b) if sparse == "a" else (b.mT, a.mT)  # c or c^T = s @ d, with zeros in s
    flat = (s.flatten(0, 1) if s.dim() == 3 else s).contiguous()
    d = d if d.dim() == 3 else d.unsqueeze(0)
    if index is not None:
        index = _given(index, flat, sparse, tile, axis, backend)
    else:
        if plan is None or plan.tile is None:
            wanted = _tile(flat, d, sparse, tile, axis)
        else:
            wanted = plan.tile if sparse == "a" else plan.tile[::-1]
        index = detect(flat, wanted, backend=backend)
        if plan is not None and _missed(index, plan):
            return None
    if d.shape[0] > 1 and s.shape[1] % index.tile[0]:
        name = "m" if sparse == "a" else "n"
        raise ValueError(
            f"tile must not straddle two matrices of the batch: its extent along {name} must divide {s.shape[1]}, "
            f"got {index.tile[0]}"
        )
    if d.shape[0] == 0:
        return _dense(a, b)  # a batch of no matrices
    column_major = sparse == "b" and s.dim() == 2
    c = GatherMm.call(flat, index.row_offsets(), index.indices.reshape(-1), *index.tile, d, column_major, backend)
    if s.dim() == 3:
        c = c.unflatten(0, s.shape[:2])
    return c if sparse == "a" else c.mT


class AtNonzeros(Differentiable):
    """x itself; its gradient only where x is not zero."""

    name, operands = "matmul", (0,)

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        save(ctx, x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        check_transforms("gossamer.ops.matmul", grad)  # no op that would
        (x,) = ctx.saved_tensors
        return grad.masked_fill(x == 0, 0)


def _given(
    index: Pattern, flat: Tensor, sparse: str, tile: Tile | Literal["auto"], axis: Axis, backend: Backend | None
) -> Pattern:
    """The index over `flat`, after checking that it is one of the sparse operand and agrees with tile and axis."""
    check_pattern(index, "index")
    expected = tuple(flat.shape) if sparse == "a" else (flat.shape[1], flat.shape[0])
    if tuple(index.shape) != expected:
        raise ValueError(f"index must have the shape {expected} of the sparse operand {sparse}, got {index.shape}")
    if index.device != flat.device:
        raise ValueError(f"index must be on a's device {flat.device}, got {index.device}")
    if tile != "auto" and check_pair("tile", tile, 1) != tuple(index.tile):
        raise ValueError(f"tile must be the index's {index.tile} or 'auto', got {tile}")
    _check_axis(axis, index.tile, sparse)
    return index if sparse == "a" else transpose(index, backend=backend).pattern


def _check_axis(axis: Axis, tile: Tile | None, sparse: str) -> None:
    """Refuse an axis that the sparse operand lacks, or a tile that is longer than 1 along it."""
    axes = ("m", "k") if sparse == "a" else ("k", "n")
    if axis == "auto":
        return
    if axis not in axes:
        raise ValueError(f"axis must be 'auto', {axes[0]!r} or {axes[1]!r} with sparse={sparse!r}, got {axis!r}")
    if tile is not None and tile[axes.index(axis)] != 1:
        raise ValueError(f"tile must have extent 1 along axis {axis!r}, (1, ...) or (..., 1), got {tile}")


def _tile(flat: Tensor, d: Tensor, sparse: str, tile: Tile | Literal["auto"], axis: Axis) -> Tile:
    """The tile of `flat` that tile and axis ask for."""
    if tile != "auto":
        rows, cols = check_pair("tile", tile, 1)
        _check_axis(axis, (rows, cols), sparse)
        return (rows, cols) if sparse == "a" else (cols, rows)
    _check_axis(axis, None, sparse)
    if axis == "k":
        return (BAND if d.shape[0] == 1 else math.gcd(BAND, flat.shape[0] // max(d.shape[0], 1))), 1
    return 1, max(flat.shape[1], 1)


def _dense(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by the fastest engine; in a's dtype under autocast too, whose dtype would depend on what a plan chose."""
    if torch.is_autocast_enabled(a.device.type):
        with torch.autocast(a.device.type, enabled=False):
            return torch.matmul(a, b)
    return dense.matmul(a, b)


def _missed(index: Pattern, plan: Plan) -> bool:
    """Are so many more tiles there than the plan's sample showed that the dense product is faster?

    Asked only where the answer is at hand: on an accelerator it would be a sync.
    """
    if index.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not plan.is_profitable(index.nnz / max(math.prod(index.grid), 1))

"""One decision: how to multiply when one operand holds zeros, with every alternative's predicted cost.

    cost(tile) = copy + detect(tile) + product(tile, occupied fraction)       dense = one product
    chosen     = the least of them

Dense is always among them, so a wrong decision costs at most the search for tiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gossamer.planner.costs import cache as costs_file
from gossamer.planner.costs.occupancy import Window, sample
from gossamer.planner.costs.prices import Costs, costs
from gossamer.planner.operands import check_operands
from gossamer.planner.tiles import Tile, axis_of, resolve

Axis = Literal["auto", "m", "k", "n"]
Sparse = Literal["a", "b"]

TILES: tuple[Tile, ...] = ((1, 0), (1, 64), (32, 1), (8, 1), (16, 16))
"""Tiles tried by default, as (rows, columns) of `a` (of `b.mT` with sparse="b"); 0 stands for the whole dimension."""

_PRODUCT_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_LEAST_ROWS, _MOST_ROWS = 128, 1024
_MATRICES = 4
_SAMPLE_SHARE = 0.01  # of the dense product's time
_SAMPLE_BYTES_PER_SECOND = 1.2e10
_SAMPLE_SECONDS = 2.5e-4  # about what one takes, with the caches full of something else
LEAST_WORK = 8 * _SAMPLE_SECONDS
"""Seconds of dense products below which an operand is not sampled."""


@dataclass(frozen=True)
class Candidate:
    """One alternative. `kind` is "dense" or the axis skipped ("m", "k", "n", "block"); times are seconds."""

    kind: str
    tile: Tile | None
    occupied: float | None
    copy: float
    detect: float
    product: float
    break_even: float

    @property
    def total(self) -> float:
        return self.copy + self.detect + self.product


@dataclass(frozen=True)
class Plan:
    """What was chosen, from what, and why.

    Attributes:
        kind: "dense", or what is skipped along: "m", "k", "n", "block".
        tile: (rows, columns) of the sparse operand, for `gs.ops.matmul(tile=...)`; None when dense.
        occupied: the predicted fraction of tiles that hold a nonzero; None when dense.
        break_even: the occupied fraction at which, the tiles once found, dense would be as fast; 1 when dense.
        candidates: all of them, the cheapest first.
        source: "measured" or "prior": where the costs come from. `basis` says it in words.
        notes: what else a reader should know: why candidates are missing, why a cheaper one was not taken.
    """

    kind: str
    tile: Tile | None
    occupied: float | None
    break_even: float
    candidates: tuple[Candidate, ...]
    source: str
    basis: str
    problem: str
    notes: tuple[str, ...] = ()

    def is_profitable(self, occupied: float) -> bool:
        """With the tiles found, is the sparse product still the faster one? False for a dense plan.

        >>> pairs = Plan("m", (1, 8), 0.2, 0.8, (), "prior", "", "")
        >>> pairs.is_profitable(0.5), pairs.is_profitable(0.9)
        (True, False)
        """
        return self.tile is not None and occupied <= self.break_even

    @property
    def covered(self) -> float | None:
        """Deprecated: `occupied`."""
        warnings.warn("Plan.covered is now Plan.occupied", DeprecationWarning, stacklevel=2)
        return self.occupied

    def pays(self, covered: float) -> bool:
        """Deprecated: `is_profitable`."""
        warnings.warn("Plan.pays is now Plan.is_profitable", DeprecationWarning, stacklevel=2)
        return self.is_profitable(covered)

    def explain(self) -> str:
        """The decision as text for a person."""
        chosen = "dense" if self.tile is None else f"{self.kind}, tile {_text(self.tile)}"
        lines = [f"{self.problem}", f"chosen: {chosen}", ""]
        lines.append(f"  {'':16}{'occupied':>10}{'copy':>11}{'detect':>11}{'product':>11}{'total':>11}")
        for candidate in self.candidates:
            name = "dense" if candidate.tile is None else f"{candidate.kind} {_text(candidate.tile)}"
            share = "" if candidate.occupied is None else f"{candidate.occupied:.1%}"
            times = (candidate.copy, candidate.detect, candidate.product, candidate.total)
            mark = "  <-" if (candidate.kind, candidate.tile) == (self.kind, self.tile) else ""
            lines.append(f"  {name:16}{share:>10}" + "".join(f"{_time(time):>11}" for time in times) + mark)
        lines += ["", f"costs: {self.source}: {self.basis}"]
        if self.tile is not None:
            lines.append(f"dense is as fast once {self.break_even:.0%} of the tiles are occupied")
        return "\n".join([*lines, *self.notes])

    __str__ = explain


def _text(tile: Tile) -> str:
    return f"({tile[0]}, {tile[1]})"


def _time(seconds: float) -> str:
    if seconds == 0.0:
        return "-"
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


@dataclass(frozen=True)
class Problem:
    """The product as s @ d with the zeros in s: s is a, or b transposed. Tiles here are of s."""

    s: Tensor
    batch: int
    rows: int
    k: int
    n: int
    copied: bool
    sparse: Sparse
    text: str

    @classmethod
    def of(cls, a: Tensor, b: Tensor, sparse: Sparse) -> Problem:
        check_operands(a, b, sparse)
        text = f"{list(a.shape)} @ {list(b.shape)}, zeros in {sparse}, {str(a.dtype).removeprefix('torch.')}"
        if sparse == "b" and b.dim() == 2 and a.dim() == 3:
            a = a.flatten(0, 1)
        s, d = (a, b) if sparse == "a" else (b.mT, a.mT)
        batch = s.shape[0] if d.dim() == 3 and s.dim() == 3 else 1
        copied = not s.is_contiguous()
        flat = s.flatten(0, 1) if s.dim() == 3 and not copied else s
        rows = s.shape[:-1].numel()
        return cls(flat.detach(), batch, rows, s.shape[-1], d.shape[-1], copied, sparse, text)

    def own(self, tile: Tile) -> Tile:
        """A tile of s as one of the sparse operand, or the other way round."""
        return tile if self.sparse == "a" else (tile[1], tile[0])

    def candidates(self, tiles: Sequence[Tile], axis: Axis) -> tuple[list[Tile], list[str]]:
        """The tiles (of s) that can be used here, and sentences about those that cannot."""
        notes: list[str] = []
        if self.rows * self.k * self.n == 0:
            return [], ["the product is empty"]
        kernels = _PRODUCT_DTYPES["cpu" if self.s.device.type == "cpu" else "cuda"]
        if self.s.dtype not in kernels:
            return [], [f"no sparse kernel for {self.s.dtype} on {self.s.device.type}"]
        shape, out = (self.rows, self.k), []
        for tile in tiles:
            whole = resolve(tile, shape)
            kind = axis_of(self.own(whole), (0, 0), self.sparse)
            if axis not in ("auto", kind):
                continue
            if (self.rows // self.batch) % whole[0]:
                notes.append(f"tile {_text(self.own(whole))} is left out: it would straddle two matrices")
                continue
            out.append(tile)
        return out, notes

    def sample(self, tiles: Sequence[Tile], dense: float, turn: int) -> tuple[float, ...]:
        """Occupied fractions at tiles of s, from a sample that costs about one percent of the dense product."""
        per_row = self.k * self.s.element_size() / _SAMPLE_BYTES_PER_SECOND
        rows = int(min(max(_SAMPLE_SHARE * dense / max(per_row, 1e-12), _LEAST_ROWS), _MOST_ROWS))
        if self.s.dim() == 2:
            return sample(self.s, tiles, rows=rows, turn=turn)
        # A batch of transposed views has no rows of its own: a few of its matrices stand for all.
        some = [(turn + i * self.batch // _MATRICES) % self.batch for i in range(min(_MATRICES, self.batch))]
        each = [sample(self.s[i], tiles, rows=max(rows // len(some), 1), turn=turn) for i in dict.fromkeys(some)]
        return tuple(sum(column) / len(each) for column in zip(*each, strict=True))


def check_axis(axis: str, sparse: str) -> None:
    allowed = ("auto", "m", "k") if sparse == "a" else ("auto", "k", "n")
    if axis not in allowed:
        raise ValueError(f"axis must be one of {', '.join(map(repr, allowed))} with sparse={sparse!r}, got {axis!r}")


@dataclass(frozen=True)
class Observation:
    """One sample of one product: what each usable tile (of s) would cost, and the occupied fractions in the sample."""

    problem: Problem
    prices: Costs
    fractions: tuple[float, ...]
    notes: tuple[str, ...]

    def candidate(self, tile: Tile | None, occupied: float | None, correction: float = 1.0) -> Candidate:
        """What the product costs at a tile, of which such a fraction is occupied, `correction` times what its curves
        say; None is dense."""
        prices, problem = self.prices, self.problem
        if tile is None or occupied is None:
            return Candidate("dense", None, None, 0.0, 0.0, prices.dense, 1.0)
        own, curve = problem.own(resolve(tile, (problem.rows, problem.k))), prices.products[tile]
        return Candidate(
            axis_of(own, (0, 0), problem.sparse), own, occupied,
            copy=correction * prices.copy if problem.copied else 0.0,
            detect=correction * prices.detects[tile](occupied), product=correction * curve(occupied),
            break_even=curve.reaches(prices.dense / correction),
        )  # fmt: skip


def observe(
    a: Tensor,
    b: Tensor,
    sparse: Sparse,
    tiles: Sequence[Tile] | None,
    axis: Axis,
    database: costs_file.Database | None,
    turn: int,
    calls: int = 1,
) -> Observation:
    """Check the operands, price the candidates, take a sample; one sample serves `calls` products."""
    problem = Problem.of(a, b, sparse)
    check_axis(axis, sparse)
    usable, notes = problem.candidates(TILES if tiles is None else [problem.own(tile) for tile in tiles], axis)
    database = costs_file.current(a.device) if database is None else database
    if database.problem:
        notes = [*notes, database.problem]
    dtype = str(a.dtype).removeprefix("torch.")
    prices = costs(database, usable, (problem.rows, problem.k, problem.n), dtype, a.device.type)
    if usable and prices.dense * calls < LEAST_WORK:
        notes = [*notes, f"not sampled: dense takes {_time(prices.dense)}, and a sample some {_time(_SAMPLE_SECONDS)}"]
        usable, prices = [], replace(prices, products={}, detects={})
    fractions = problem.sample(usable, prices.dense, turn) if usable else ()
    return Observation(problem, prices, fractions, tuple(notes))


def decide(seen: Observation, candidates: list[Candidate]) -> Plan:
    """The cheapest candidate; ties go to the first, which is dense."""
    candidates.sort(key=lambda candidate: candidate.total)
    plan = Plan("dense", None, None, 1.0, tuple(candidates), seen.prices.source, seen.prices.basis, seen.problem.text,
                seen.notes)  # fmt: skip
    return choose(plan, candidates[0])


def choose(plan: Plan, candidate: Candidate, *notes: str) -> Plan:
    """The same plan with this candidate chosen."""
    return replace(
        plan, kind=candidate.kind, tile=candidate.tile, occupied=candidate.occupied, break_even=candidate.break_even,
        notes=plan.notes + notes,
    )  # fmt: skip


def plan(
    a: Tensor,
    b: Tensor,
    sparse: Sparse = "a",
    *,
    tiles: Sequence[Tile] | None = None,
    axis: Axis = "auto",
    window: Window | None = None,
    database: costs_file.Database | None = None,
    turn: int = 0,
) -> Plan:
    """Choose between the dense product and skipping the zero tiles of one operand.

    Reads a sample of the sparse operand that costs about a hundredth of the dense product. A call site that multiplies
    again and again should hold a `Planner` instead, which samples less often.

    Args:
        a, b: the operands of `gs.ops.matmul`, which refuses the same: [m, k] and [k, n], or batched; strided, of one
            dtype, float64, float32, bfloat16 or float16.
        sparse: the operand that may hold zeros.
        tiles: tiles of the sparse operand to consider, 0 standing for a whole dimension; None for the usual ones.
        axis: only tiles that skip along this axis ("m" or "k" of a, "k" or "n" of b).
        window: to average this sample with earlier ones; None to go by this one alone.
        database: the cost curves; None for those that `gossamer tune` kept for this machine, else a roofline.
        turn: which bands of rows the sample takes; count it up from call to call.

    Returns:
        `Plan`; its `explain()` says what was compared. Dense is always compared.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> a = torch.zeros(1024, 1024)
    >>> a[::4] = 1.0
    >>> untuned = costs_file.Database({"threads": 2, "isa": "avx2"})
    >>> choice = plan(a, torch.ones(1024, 1024), axis="m", database=untuned)
    >>> choice.kind, choice.tile, choice.occupied
    ('m', (1, 1024), 0.25)
    """
    seen = observe(a, b, sparse, tiles, axis, database, turn)
    fractions = seen.fractions if window is None else window.add(seen.fractions)
    found = [seen.candidate(tile, share) for tile, share in zip(seen.prices.products, fractions, strict=True)]
    return decide(seen, [seen.candidate(None, None), *found])

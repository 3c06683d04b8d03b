"""Which axes of a tensor expression may be permuted, and along which zeros may be skipped (PIT, SOSP 2023).

An axis is *permutation-invariant* when permuting it in every operand that carries it permutes the result (a spatial
axis) or leaves it alone (a reduction by a commutative and associative reducer). It is *skippable* for a sparse operand
when, besides, every index where that operand's slice is absent can be left out. Permuting is not enough for that: what
is left out must be the reducer's identity. A sum may leave out 0 * b; a maximum may not leave out 0.

    C[m,n] += A[m,k] * B[k,n]        m, k skippable where A is zero; n permutable, but A says nothing about it

Leaving out 0 * b is *masking*: with b infinite or NaN the dense expression gives NaN and the skipping one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gossamer.compile.expressions.expression import Expression, parse

Kind = Literal["spatial", "reduction", "derived", "along"]

_IDENTITY = {
    "+=": 0.0, "*=": 1.0, "max=": -math.inf, "min=": math.inf, "or=": 0.0, "and=": 1.0, "logsumexp=": -math.inf,
}  # fmt: skip
_ORDERED = ("cumsum=", "scan=")


@dataclass(frozen=True)
class Axis:
    """The verdict on one axis.

    `kind`: "spatial" (in the target), "reduction" (not in it), "derived" (part of an index such as x+i) or "along"
    (the target keeps it and a function runs along it, as in `cumsum(l)=`).
    """

    name: str
    kind: Kind
    invariant: bool
    skippable: bool
    why: str


@dataclass(frozen=True)
class Analysis:
    """The verdicts on all axes of an expression, for one sparse operand."""

    expression: Expression
    sparse: str
    axes: tuple[Axis, ...]

    def __getitem__(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise KeyError(f"no axis {name!r} in {self.expression.text!r}; axes are {[axis.name for axis in self.axes]}")

    @property
    def invariant(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes if axis.invariant)

    @property
    def skippable(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes if axis.skippable)

    def explain(self) -> str:
        """One line per axis, for a person."""
        width = max((len(axis.name) for axis in self.axes), default=0)
        lines = [f"{self.expression.text}   (sparse: {self.sparse})"]
        for axis in self.axes:
            verdict = "skip" if axis.skippable else "permute" if axis.invariant else "keep"
            lines.append(f"  {axis.name:{width}}  {axis.kind:9}  {verdict:7}  {axis.why}")
        return "\n".join(lines)

    __str__ = explain


def analyse(expression: str, sparse: str = "A", *, absent: float = 0.0) -> Analysis:
    """Judge every axis of an expression.

    Args:
        expression: such as "C[m,n] += A[m,k] * B[k,n]"; the grammar is in `gossamer.compile.expressions.expression`.
        sparse: the operand whose elements may be absent.
        absent: the value that an absent element stands for: 0, or `-math.inf` for masked scores.

    Returns:
        `Analysis`: for each axis whether it may be permuted, whether absent slices may be skipped, and why.

    Raises:
        ValueError: a malformed expression (quoted, with the position), an unknown operand, another `absent`.

    >>> verdict = analyse("C[n,f,x,y] += A[n,m,x+i,y+j] * B[f,m,i,j]")
    >>> verdict.skippable, verdict["x"].why
    (('n', 'm'), 'x is part of the derived index x+i of A: a permutation of x moves no whole slices of A')
    """
    parsed = parse(expression)
    names = [operand.name for operand in parsed.operands]
    if sparse not in names:
        raise ValueError(f"sparse is {sparse!r}; expected an operand of {expression!r}: {', '.join(names)}")
    if absent not in (0.0, -math.inf, math.inf):
        raise ValueError(f"absent is {absent!r}; expected 0, -inf or inf")
    return Analysis(parsed, sparse, tuple(_judge(parsed, sparse, absent, axis) for axis in parsed.axes))


def _judge(expression: Expression, sparse: str, absent: float, axis: str) -> Axis:
    for operand in expression.operands:
        for index in operand.indices:
            if index.derived and axis in index.axes:
                why = f"{axis} is part of the derived index {index.text} of {operand.name}: a permutation of {axis} "
                return Axis(axis, "derived", False, False, why + f"moves no whole slices of {operand.name}")
    if axis in expression.along:
        return _judge_along(expression, sparse, absent, axis)
    spatial = axis in expression.target.axes
    kind: Kind = "spatial" if spatial else "reduction"
    carrier = next(operand for operand in expression.operands if operand.name == sparse)
    if axis not in carrier.axes:
        return Axis(axis, kind, True, False, f"{sparse} does not carry {axis}: its zeros say nothing about {axis}")
    term, why = _absent_term(expression, sparse, absent)
    if term is None:
        return Axis(axis, kind, True, False, why)
    skippable, why = (_skip_spatial if spatial else _skip_reduction)(expression, axis, term, absent)
    return Axis(axis, kind, True, skippable, why)


def _absent_term(expression: Expression, sparse: str, absent: float) -> tuple[float | None, str]:
    """What the source is worth where `sparse` is absent, if that does not depend on the other operands."""
    without = [product for product in expression.products if all(operand.name != sparse for operand in product)]
    if without:
        left = " * ".join(operand.name for operand in without[0])
        return None, f"where {sparse} is absent the source is not: {left} remains"
    if absent != 0.0 and any(len(product) > 1 for product in expression.products):
        return None, f"an absent {sparse} of {absent} times another operand may be anything"
    return absent, ""


def _skip_reduction(expression: Expression, axis: str, term: float, absent: float) -> tuple[bool, str]:
    reducer = expression.reducer
    if reducer in ("mean=", "var="):
        return False, f"absent elements count in the {reducer[:-1]}: leaving {axis} out changes what it divides by"
    identity = _IDENTITY[reducer]
    if term == identity:
        return True, f"an absent slice adds {term:g}, the identity of {reducer!r}"
    return False, f"an absent slice contributes {term:g}, but the identity of {reducer!r} is {identity:g}"


def _skip_spatial(expression: Expression, axis: str, term: float, absent: float) -> tuple[bool, str]:
    """The target's slice is a function of absent terms alone; it must be absent too, since nobody computes it."""
    reducer = expression.reducer
    if reducer in ("softmax=", "logsumexp=") and not (reducer == "logsumexp=" and term == -math.inf):
        return False, f"{reducer!r} of absent elements is not {absent:g}, so the slice must be computed"
    if math.isinf(term) and reducer not in ("=", "+=", "max=", "min=", "logsumexp="):
        return False, f"{reducer!r} of {term:g} is not {absent:g}, so the slice must be computed"
    return True, f"an absent slice of the operand gives an absent slice of {expression.target.name}"


def _judge_along(expression: Expression, sparse: str, absent: float, axis: str) -> Axis:
    reducer = expression.reducer
    if reducer in _ORDERED:
        return Axis(axis, "along", False, False, f"{reducer!r} depends on the order of {axis}")
    if reducer == "layernorm=":
        why = f"{axis} may be permuted, but absent elements count in the mean and variance over {axis}"
        return Axis(axis, "along", True, False, why)
    term, why = _absent_term(expression, sparse, absent)
    carrier = next(operand for operand in expression.operands if operand.name == sparse)
    if axis not in carrier.axes:
        return Axis(axis, "along", True, False, f"{sparse} does not carry {axis}: its zeros say nothing about {axis}")
    if term is None:
        return Axis(axis, "along", True, False, why)
    if term == -math.inf:
        return Axis(axis, "along", True, True, f"exp(-inf) adds nothing to the sum over {axis}, and gives 0 itself")
    return Axis(axis, "along", True, False, f"exp({term:g}) is not 0: an absent element counts in the sum over {axis}")

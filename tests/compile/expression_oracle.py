"""Evaluates any expression of the grammar by a loop over all indices: slow, obvious, float64."""

from __future__ import annotations

import itertools
import re

import numpy as np

from gossamer.compile.expressions.expression import Expression, Index


def subscript(index: Index, at: dict[str, int]) -> int:
    return int(eval(re.sub(r"[A-Za-z_]\w*", lambda name: str(at[name[0]]), index.text)))


def shapes(expression: Expression, extents: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each operand: one more than the largest subscript. Derived indices must not go below 0."""
    corners = {axis: extents[axis] - 1 for axis in expression.axes}
    return {
        operand.name: tuple(subscript(index, corners) + 1 for index in operand.indices)
        for operand in expression.operands
    }


def source(expression: Expression, tensors: dict[str, np.ndarray], at: dict[str, int]) -> float:
    total = 0.0
    for product in expression.products:
        value = 1.0
        for operand in product:
            value *= tensors[operand.name][tuple(subscript(index, at) for index in operand.indices)]
        total += value
    return total


REDUCE = {
    "=": lambda v: v[0],
    "+=": np.sum,
    "*=": np.prod,
    "max=": np.max,
    "min=": np.min,
    "and=": lambda v: float(np.all(v != 0)),
    "or=": lambda v: float(np.any(v != 0)),
    "logsumexp=": np.logaddexp.reduce,
    "mean=": np.mean,
    "var=": np.var,
}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


ALONG = {
    "cumsum=": np.cumsum,
    "scan=": lambda x: np.array([x[: i + 1] @ (0.5 ** np.arange(i + 1)) for i in range(len(x))]),
    "softmax=": softmax,
    "layernorm=": lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5),
}


def evaluate(expression: Expression, tensors: dict[str, np.ndarray], axes: dict[str, list[int]]) -> np.ndarray:
    """The target over the given index lists: `axes[name]` are the values that the axis takes, in that order.

    A reduction over no index at all gives NaN, so that no law can be met by accident.
    """
    target = expression.target.axes
    reduced = [axis for axis in expression.axes if axis not in target]
    out = np.full([len(axes[axis]) for axis in target], np.nan)
    for place in itertools.product(*(range(len(axes[axis])) for axis in target)):
        at = {axis: axes[axis][i] for axis, i in zip(target, place, strict=True)}
        values = [
            source(expression, tensors, {**at, **dict(zip(reduced, more, strict=True))})
            for more in itertools.product(*(axes[axis] for axis in reduced))
        ]
        if values and expression.along:
            out[place] = values[0]
        elif values:
            out[place] = REDUCE[expression.reducer](np.array(values))
    for axis in expression.along:
        out = np.apply_along_axis(ALONG[expression.reducer], target.index(axis), out)
    return out

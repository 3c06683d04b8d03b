"""The axis analyser: what it allows holds for random numbers, what it refuses has a counterexample."""

from __future__ import annotations

import itertools
import math

import expression_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.compile.expressions.axes import analyse
from gossamer.compile.expressions.expression import parse

# expression, absent value, permutable axes, axes skippable for A
TABLE = [
    ("C[p] += A[p,l]", 0.0, "pl", "pl"),
    ("C[p] = A[p] + B[p]", 0.0, "p", ""),
    ("C[p] = A[p] * B[p]", 0.0, "p", "p"),
    ("C[m,n] += A[m,k] * B[k,n]", 0.0, "mkn", "mk"),
    ("C[m,n] += B[m,k] * A[k,n]", 0.0, "mkn", "kn"),
    ("C[b,m,n] += A[b,m,k] * B[b,k,n]", 0.0, "bmkn", "bmk"),
    ("C[n,f,x,y] += A[n,m,x+i,y+j] * B[f,m,i,j]", 0.0, "nfm", "nm"),
    ("C[n,f,x,y] += B[n,m,x+i,y+j] * A[f,m,i,j]", 0.0, "nfm", "fm"),
    ("C[n,f,p] += A[n,m,p] * B[f,m]", 0.0, "nfpm", "nmp"),  # a 1x1 convolution has its positions back
    ("C[p] max= A[p,l]", 0.0, "pl", "p"),
    ("C[p] max= A[p,l]", -math.inf, "pl", "pl"),
    ("C[p] min= A[p,l]", 0.0, "pl", "p"),
    ("C[p] min= A[p,l]", math.inf, "pl", "pl"),
    ("C[p] *= A[p,l]", 0.0, "pl", "p"),
    ("C[p] and= A[p,l]", 0.0, "pl", "p"),
    ("C[p] or= A[p,l] * B[l]", 0.0, "pl", "pl"),
    ("C[p] mean= A[p,l]", 0.0, "pl", "p"),
    ("C[p] var= A[p,l]", 0.0, "pl", "p"),
    ("C[p] logsumexp= A[p,l]", 0.0, "pl", ""),
    ("C[p] logsumexp= A[p,l]", -math.inf, "pl", "pl"),
    ("C[p,l] softmax(l)= A[p,l]", 0.0, "pl", ""),
    ("C[p,l] softmax(l)= A[p,l]", -math.inf, "pl", "l"),
    ("C[p,l] layernorm(l)= A[p,l]", 0.0, "pl", "p"),
    ("C[p,l] cumsum(l)= A[p,l]", 0.0, "p", "p"),
    ("H[t,d] scan(t)= A[t,d] * B[d]", 0.0, "d", "d"),
    ("C[t,d] = A[t-1,d]", 0.0, "d", "d"),
    ("C[p] += A[p,l] + B[l]", 0.0, "pl", ""),
    ("C[p] += A[p,l] * B[l] - A2[l]", 0.0, "pl", ""),
    ("C[p] max= A[p,l] * B[l]", -math.inf, "pl", ""),
]


@pytest.mark.parametrize("text, absent, invariant, skippable", TABLE, ids=[f"{row[0]} {row[1]}" for row in TABLE])
def test_table(text, absent, invariant, skippable):
    verdict = analyse(text, absent=absent)
    assert sorted(verdict.invariant) == sorted(invariant)
    assert sorted(verdict.skippable) == sorted(skippable)
    assert set(verdict.skippable) <= set(verdict.invariant)
    assert all(axis.name in axis.why or "absent" in axis.why for axis in verdict.axes)
    assert all(f"  {axis.name}" in verdict.explain() for axis in verdict.axes)


def _values(expression, extents, rng):
    """Integers, so that sums in any order are exact; zeros and ones for the logical reducers."""
    logical = expression.reducer in ("and=", "or=")
    low, high = (0, 2) if logical else (-3, 4)
    return {
        name: rng.integers(low, high, shape).astype(float) for name, shape in oracle.shapes(expression, extents).items()
    }


def _erase(expression, tensors, axis, indices, absent):
    """The same tensors with A absent at `indices` of the axis."""
    operand = next(operand for operand in expression.operands if operand.name == "A")
    place = [index.text for index in operand.indices].index(axis)
    a = tensors["A"].copy()
    a[(slice(None),) * place + (list(indices),)] = absent
    return {**tensors, "A": a}


def _skipping_changes_nothing(expression, tensors, extents, axis, gone, absent):
    axes = {name: list(range(extent)) for name, extent in extents.items()}
    kept = [i for i in axes[axis] if i not in gone]
    full = oracle.evaluate(expression, tensors, axes)
    part = oracle.evaluate(expression, tensors, {**axes, axis: kept})
    if axis in expression.target.axes:
        place = expression.target.axes.index(axis)
        fill = 0.0 if expression.along == (axis,) else absent
        whole = np.full(full.shape, fill)
        whole[(slice(None),) * place + (kept,)] = part
        part = whole
    return np.allclose(full, part, rtol=1e-12, atol=1e-12)


def _cases(rng, expression, axis, absent, tries):
    for _ in range(tries):
        extents = {name: int(rng.integers(2, 4)) for name in expression.axes}
        gone = set(rng.permutation(extents[axis])[: rng.integers(1, extents[axis])].tolist())
        tensors = _values(expression, extents, rng)
        carrier = next(operand for operand in expression.operands if operand.name == "A")
        if axis in carrier.axes:
            tensors = _erase(expression, tensors, axis, gone, absent)
        yield tensors, extents, gone


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("text, absent", [row[:2] for row in TABLE], ids=[f"{row[0]} {row[1]}" for row in TABLE])
def test_skipping_is_allowed_exactly_where_it_changes_nothing(text, absent):
    expression, rng = parse(text), np.random.default_rng(0)
    for axis in analyse(text, absent=absent).axes:
        if axis.kind == "derived":
            continue  # an operand has no slice of it; that it may not even be permuted is tested below
        cases = _cases(rng, expression, axis.name, absent, 5 if axis.skippable else 100)
        same = (_skipping_changes_nothing(expression, *case[:2], axis.name, case[2], absent) for case in cases)
        assert all(same) if axis.skippable else not all(same), axis


def _permuted(expression, tensors, axis, order, derived_order):
    """Every operand permuted along the axis; a derived dimension that contains it by `derived_order`."""
    out = {}
    for operand in expression.operands:
        x = tensors[operand.name]
        for place, index in enumerate(operand.indices):
            if index.text == axis:
                x = np.take(x, order, place)
            elif axis in index.axes:
                x = np.take(x, derived_order, place)
        out[operand.name] = x
    return out


@pytest.mark.parametrize("text", sorted({row[0] for row in TABLE}))
def test_permuting_is_allowed_exactly_where_it_permutes_the_result(text):
    expression, rng = parse(text), np.random.default_rng(1)
    for axis in analyse(text).axes:
        name = axis.name
        # Three positions: of two, the only permutation is the reversal, which some window functions do commute with.
        extents = {other: 3 if other == name else 2 for other in expression.axes}
        if "t-1" in text:
            extents["t"] = 3
        tensors = {key: rng.standard_normal(shape) for key, shape in oracle.shapes(expression, extents).items()}
        axes = {other: list(range(extent)) for other, extent in extents.items()}
        full = oracle.evaluate(expression, tensors, axes)
        order = [1, 2, 0]
        if name in expression.target.axes:
            full = np.take(full, order, expression.target.axes.index(name))
        derived = [i for operand in expression.operands for i in operand.indices if i.derived and name in i.axes]
        corner = {other: extent - 1 for other, extent in extents.items()}
        length = max((oracle.subscript(index, corner) + 1 for index in derived), default=0)
        results = (
            oracle.evaluate(expression, _permuted(expression, tensors, name, order, list(other)), axes)
            for other in itertools.permutations(range(length))
        )
        commutes = any(np.allclose(full, result) for result in results)
        assert commutes == axis.invariant, axis


@st.composite
def sum_products(draw):
    """A sum-product expression of torch.einsum: text, equation, extents and a sparse operand."""
    axes = draw(st.lists(st.sampled_from("abcdk"), min_size=1, max_size=4, unique=True))
    operands = draw(st.lists(st.lists(st.sampled_from(axes), unique=True, max_size=3), min_size=1, max_size=3))
    used = sorted({axis for operand in operands for axis in operand})
    target = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
    names = ["A", "B", "D"][: len(operands)]
    text = f"C[{','.join(target)}] += " + " * ".join(
        f"{name}[{','.join(axes)}]" for name, axes in zip(names, operands, strict=True)
    )
    equation = ",".join("".join(operand) for operand in operands) + "->" + "".join(target)
    return text, equation, operands, target, {axis: draw(st.integers(2, 4)) for axis in used}


@settings(max_examples=80)
@given(sum_products(), st.integers(0, 2**32 - 1))
def test_einsum_agrees_with_the_verdict(drawn, seed):
    text, equation, operands, target, extents = drawn
    generator = torch.Generator().manual_seed(seed)
    for axis in analyse(text).axes:
        assert axis.invariant
        # Powers of two apart from 0: a product is never 0 by chance and sums of a few are exact.
        tensors = [2.0 ** torch.randint(0, 4, [extents[a] for a in o], generator=generator).double() for o in operands]
        order = torch.randperm(extents[axis.name], generator=generator)
        gone, kept = order[:1], order[1:]
        if axis.name in operands[0]:
            tensors[0].index_fill_(operands[0].index(axis.name), gone, 0.0)
        full = torch.einsum(equation, *tensors)

        def along(indices, tensors=tensors, name=axis.name):
            return [
                x.index_select(o.index(name), indices) if name in o else x
                for x, o in zip(tensors, operands, strict=True)
            ]

        permuted, part = torch.einsum(equation, *along(order)), torch.einsum(equation, *along(kept))
        if axis.name in target:
            place = target.index(axis.name)
            assert torch.equal(permuted, full.index_select(place, order))
            part = torch.zeros_like(full).index_copy(place, kept, part)
        else:
            assert torch.equal(permuted, full)
        assert torch.equal(part, full) == axis.skippable


def test_infinity_is_masked_not_multiplied():
    """The documented difference: a skipped 0 * inf is nothing, a computed one is NaN."""
    assert analyse("C[m] += A[m,k] * B[k]")["k"].skippable
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0, math.inf])
    assert torch.isnan(a @ b)
    assert (a[:, :1] @ b[:1]).item() == 2.0


def test_unknown_operand_and_absent_value():
    with pytest.raises(ValueError, match=r"sparse is 'W'; expected an operand of .*: A, B"):
        analyse("C[m,n] += A[m,k] * B[k,n]", "W")
    with pytest.raises(ValueError, match="absent is 2"):
        analyse("C[m] += A[m,k]", absent=2.0)
    with pytest.raises(KeyError, match="no axis 'z'"):
        analyse("C[m] += A[m,k]")["z"]

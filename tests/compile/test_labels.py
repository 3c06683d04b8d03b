"""A dimension is recognised by how it is used, and never by its size."""

from __future__ import annotations

import pytest

from gossamer.compile.labels import Axes


def label(axes: Axes, *sizes: int) -> tuple[tuple[int, ...], ...]:
    return axes.fresh_label(sizes)


def test_equal_sizes_are_not_the_same_axis() -> None:
    axes = Axes()
    a, b = label(axes, 4, 4)
    assert axes.root(a[0]) != axes.root(b[0])
    axes.unify(a, b)
    assert axes.root(a[0]) == axes.root(b[0])


def test_what_cannot_be_the_same_is_left_as_it_is() -> None:
    axes = Axes()
    a, b, c = label(axes, 4, 5, 4)
    axes.unify(a, b)
    axes.unify((*a, *b), c)
    assert len({axes.root(dim[0]) for dim in (a, b, c)}) == 3


def test_a_dimension_of_size_one_is_of_no_axis() -> None:
    assert label(Axes(), 1, 3)[0] == ()


@pytest.mark.parametrize(
    "sizes, shape, expected",
    [
        ((2, 3, 8), (6, 8), "01,2"),  # merged
        ((2, 3, 8), (2, 3, 4, 2), "0,1,?,?"),  # split
        ((2, 3, 8), (2, 1, 3, 8), "0,-,1,2"),
        ((2, 3, 8), (3, 2, 8), "?,?,?"),  # pieces of several axes
        ((2, 3, 8), (2, 12, 2), "0,?,?"),
        ((2, 6, 8), (2, 3, 2, 8), "0,?,?,2"),  # windows
        ((4, 4, 8), (4, 4, 8), "0,1,2"),
        ((4, 4, 4), (16, 4), "01,2"),
        ((2, 3, 8), (48,), "012"),
        ((4, 2, 2, 8), (4, 4, 8), "0,12,3"),
        ((4, 2, 2, 8), (2, 2, 4, 8), "?,?,12,3"),
    ],
)
def test_views_merge_and_split_in_the_order_of_elements(
    sizes: tuple[int, ...], shape: tuple[int, ...], expected: str
) -> None:
    axes = Axes()
    before = axes.fresh_label(sizes)
    after = axes.reshaped(before, shape)
    known = {dim[0]: str(at) for at, dim in enumerate(before) if dim}
    names = ["".join(known.get(axis, "?") for axis in dim) or "-" for dim in after]
    assert ",".join(names) == expected
    assert len(after) == len(shape)


def test_splitting_and_merging_again_is_another_axis() -> None:
    """Two windows of two tokens that are merged again are not known to be the tokens: it stays dense, and right."""
    axes = Axes()
    before = label(axes, 3, 4)
    after = axes.reshaped(axes.reshaped(before, (3, 2, 2)), (3, 4))
    assert after[0] == before[0] and after[1] != before[1]

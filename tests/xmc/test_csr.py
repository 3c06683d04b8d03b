"""Csr: what it refuses, and that its parts agree with lists of Python sets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.xmc.data import Csr
from gossamer.xmc.heads.base_head import within


def _t(*numbers: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize(
    ("offsets", "indices", "values", "shape", "said"),
    [
        (_t(0, 1), _t(0), None, (2, 4), r"offsets are torch.int64\[2\]; expected torch.int64\[3\]"),
        (_t(0, 1, dtype=torch.int32), _t(0), None, (1, 4), "offsets are torch.int32"),
        (_t(0, 1), _t(0, dtype=torch.int16), None, (1, 4), "indices are torch.int16"),
        (_t(0, 1), _t(0), torch.ones(2), (1, 4), r"values are torch.float32\[2\]; expected torch.float32\[1\]"),
        (_t(0, 1), _t(0), torch.ones(1).double(), (1, 4), "values are torch.float64"),
        (_t(0), _t(), None, (-1, 4), "shape is"),
        (_t(1, 1), _t(0), None, (1, 4), "offsets go from 1 to 1; expected 0 to 1"),
        (_t(0, 2), _t(0), None, (1, 4), "offsets go from 0 to 2; expected 0 to 1"),
        (_t(0, 2, 1), _t(0), None, (2, 4), "rising"),
        (_t(0, 1, 2), _t(0, 4), None, (2, 4), "row 1 has the column 4; expected 0 to 3"),
        (_t(0, 0, 1), _t(-1), None, (2, 4), "row 1 has the column -1"),
        (_t(0, 1, 3), _t(3, 2, 1), None, (2, 4), "row 1 has the column 1 after 2; expected sorted"),
        (_t(0, 2), _t(2, 2), None, (1, 4), "row 0 has the column 2 after 2"),
        (_t(0, 1, 1, 2), _t(2, 2), torch.tensor([1, float("nan")]), (3, 4), "row 2 has the value nan"),
    ],
)
def test_what_is_no_matrix_is_refused(offsets, indices, values, shape, said) -> None:
    with pytest.raises(ValueError, match=said):
        Csr(offsets, indices, values, shape).validate()


def test_as_many_columns_as_int32_has_numbers() -> None:
    """2^31 columns have numbers in int32, and 2^31 itself has not."""
    whole = Csr(_t(0, 1, 3), _t(5, 0, 2**31 - 1, dtype=torch.int32), None, (2, 2**31)).validate()
    rows = Csr.from_lists([[5], [0, 2**31 - 1]], 2**31).validate()
    assert rows.indices.dtype == torch.int32 and torch.equal(rows.indices, whole.indices)
    assert _lists(within(whole, 0, 2**31)) == [[5], [0, 2**31 - 1]]
    assert _lists(within(whole, 2**30, 2**31)) == [[], [2**30 - 1]]
    with pytest.raises(ValueError, match="row 0 has the column -1; expected 0 to 2147483647"):
        Csr(_t(0, 1), _t(-1, dtype=torch.int32), None, (1, 2**31)).validate()


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 9))), st.data())
def test_rows_slices_and_batches_are_those_of_the_lists(rows, data) -> None:
    sets = [sorted(set(row)) for row in rows]
    y = Csr.from_lists(rows, columns=10).validate()
    assert [y.row(i).tolist() for i in range(len(rows))] == sets
    assert y.counts().tolist() == [len(row) for row in sets]
    assert y.column_counts().tolist() == [sum(c in row for row in sets) for c in range(10)]
    assert _lists(Csr.from_scipy(y.to_scipy(), values=False)) == sets
    start, stop = sorted((data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, len(rows)))))
    assert _lists(y.slice(start, stop)) == sets[start:stop]
    if rows:
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1)))
        assert _lists(y.take(torch.tensor(chosen, dtype=torch.int64))) == [sets[i] for i in chosen]


def _lists(y: Csr) -> list[list[int]]:
    return [row.tolist() for row in torch.split(y.validate().indices, y.counts().tolist())]


def test_from_lists_names_the_row() -> None:
    with pytest.raises(ValueError, match="row 1 has the column 5; expected 0 to 4"):
        Csr.from_lists([[0], [5, 1]], columns=5)


def test_values_follow_their_columns() -> None:
    from scipy.sparse import coo_matrix

    x = Csr.from_scipy(coo_matrix(([1.0, 2.0, 0.0, 4.0], ([1, 1, 0, 0], [3, 3, 1, 0])), shape=(2, 5)))
    assert (x.indices.tolist(), x.values.tolist()) == ([0, 3], [4.0, 3.0])  # joined by a sum, zeros left out
    assert x.take(torch.tensor([1])).values.tolist() == x.slice(1, 2).values.tolist() == [3.0]
    with pytest.raises(ValueError, match="row 0 has the value inf"):
        Csr.from_scipy(coo_matrix(([1e300], ([0], [0])), shape=(1, 1)))

"""A sparse matrix by rows, as plain tensors: which labels each example has, or its features and their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gossamer.extras import needed

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

INT32_COLUMNS = 1 << 31  # so many columns have numbers that fit int32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Csr:
    """Row `i` holds the columns `indices[offsets[i]:offsets[i + 1]]`, sorted, none twice.

    Attributes:
        offsets: int64[rows + 1], first 0, never falling, last = entries.
        indices: int32 or int64 [entries].
        values: float32[entries], or None where only the places count (label sets).
        shape: (rows, columns).

    The constructor looks at types and lengths, `validate()` at every entry; builders and readers return valid ones.

    >>> from gossamer.xmc.data import Csr
    >>> y = Csr.from_lists([[3, 0, 3], []], columns=4)
    >>> y, y.indices.tolist(), y.counts().tolist()
    (Csr(2 x 4, 2 entries), [0, 3], [2, 0])
    """

    offsets: Tensor
    indices: Tensor
    values: Tensor | None
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.shape
        if rows < 0 or columns < 0:
            raise ValueError(f"shape is {self.shape}; expected two numbers from 0")
        if self.offsets.dtype != torch.int64 or self.offsets.shape != (rows + 1,):
            raise ValueError(
                f"offsets are {self.offsets.dtype}{list(self.offsets.shape)}; expected torch.int64[{rows + 1}], "
                f"one more than the rows of shape {self.shape}"
            )
        if self.indices.dtype not in (torch.int32, torch.int64) or self.indices.ndim != 1:
            raise ValueError(
                f"indices are {self.indices.dtype}{list(self.indices.shape)}; expected torch.int32 or torch.int64, "
                "one dimension"
            )
        if self.values is not None and (self.values.dtype != torch.float32 or self.values.shape != self.indices.shape):
            raise ValueError(
                f"values are {self.values.dtype}{list(self.values.shape)}; expected "
                f"torch.float32{list(self.indices.shape)}, one for each index"
            )

    def __repr__(self) -> str:
        kind = "" if self.values is None else ", with values"
        return f"Csr({self.shape[0]} x {self.shape[1]}, {self.nnz} entries{kind})"

    @property
    def nnz(self) -> int:
        """The number of entries."""
        return len(self.indices)

    def validate(self) -> Csr:
        """Raise ValueError unless every entry is as the class says; returns itself.

        >>> Csr(torch.tensor([0, 1]), torch.tensor([7]), None, (1, 4)).validate()
        Traceback (most recent call last):
        ValueError: row 0 has the column 7; expected 0 to 3
        """
        offsets, indices = self.offsets, self.indices
        if int(offsets[0]) != 0 or int(offsets[-1]) != self.nnz or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(
                f"offsets go from {int(offsets[0])} to {int(offsets[-1])}; expected 0 to {self.nnz}, rising"
            )
        if not self.nnz:
            return self
        low, high = (int(number) for number in indices.aminmax())
        if low < 0 or high >= self.shape[1]:  # as Python numbers: 2^31 columns are one more than int32 holds
            wide = indices.long()
            place = int(((wide < 0) | (wide >= self.shape[1])).nonzero()[0])
            raise ValueError(
                f"row {self._row_of(place)} has the column {int(indices[place])}; expected 0 to {self.shape[1] - 1}"
            )
        falling = indices[1:] <= indices[:-1]
        starts = offsets[1:-1]
        falling[starts[(starts > 0) & (starts < self.nnz)] - 1] = False  # a new row begins anew
        if bool(falling.any()):
            place = int(falling.nonzero()[0]) + 1
            raise ValueError(
                f"row {self._row_of(place)} has the column {int(indices[place])} after {int(indices[place - 1])}; "
                "expected sorted columns, none twice"
            )
        if self.values is not None and not bool(self.values.isfinite().all()):
            place = int((~self.values.isfinite()).nonzero()[0])
            raise ValueError(
                f"row {self._row_of(place)} has the value {float(self.values[place])}; expected finite ones"
            )
        return self

    def _row_of(self, place: int) -> int:
        return int(torch.searchsorted(self.offsets, place, right=True)) - 1

    # ---------------------------------------------------------------- builders

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]], columns: int) -> Csr:
        """Label sets from lists of numbers in any order; what is named twice counts once.

        Raises:
            ValueError: a number below 0 or not below `columns`.
        """
        sets = [sorted(set(row)) for row in rows]
        for number, row in enumerate(sets):
            if row and not 0 <= row[0] <= row[-1] < columns:
                wrong = row[0] if row[0] < 0 else row[-1]
                raise ValueError(f"row {number} has the column {wrong}; expected 0 to {columns - 1}")
        offsets = torch.zeros(len(sets) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(torch.tensor([len(row) for row in sets], dtype=torch.int64, device="cpu"), 0, out=offsets[1:])
        flat = np.fromiter((column for row in sets for column in row), np.int64, int(offsets[-1]))
        return cls(offsets, torch.from_numpy(flat).to(index_type(columns)), None, (len(sets), columns))

    @classmethod
    def from_scipy(cls, matrix: csr_matrix, *, values: bool = True) -> Csr:
        """From any scipy.sparse matrix; entries of one place are added, stored zeros are kept out.

        Args:
            values: False for label sets: only the places that are not zero count.

        Raises:
            ValueError: a value that is not finite as float32.
        """
        matrix = matrix.tocsr(copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        rows, columns = (int(size) for size in matrix.shape)
        numbers = None
        if values:
            with np.errstate(over="ignore"):  # what is beyond float32 is said by validate
                numbers = torch.from_numpy(matrix.data.astype(np.float32))
        indices = torch.from_numpy(matrix.indices.astype(np.int64)).to(index_type(columns))
        return cls(torch.from_numpy(matrix.indptr.astype(np.int64)), indices, numbers, (rows, columns)).validate()

    def to_scipy(self) -> csr_matrix:
        """The same as scipy.sparse.csr_matrix, float32; ones where there are no values.

        Raises:
            ImportError: scipy is not installed.
        """
        sparse = needed("scipy.sparse", "Csr.to_scipy needs scipy", "xmc")
        values = torch.ones(self.nnz, dtype=torch.float32, device="cpu") if self.values is None else self.values
        return sparse.csr_matrix((values.numpy(), self.indices.numpy(), self.offsets.numpy()), shape=self.shape)

    # ---------------------------------------------------------------- parts

    def counts(self) -> Tensor:
        """int64[rows]: entries of each row."""
        return self.offsets.diff()

    def column_counts(self) -> Tensor:
        """int64[columns]: rows that hold each column (of labels: their frequencies)."""
        return torch.bincount(self.indices, minlength=self.shape[1])

    def row(self, number: int) -> Tensor:
        """The columns of one row: a view of `indices`."""
        return self.indices[int(self.offsets[number]) : int(self.offsets[number + 1])]

    def slice(self, start: int, stop: int) -> Csr:
        """Rows start to stop (not included); indices and values are views."""
        start, stop = max(start, 0), min(stop, self.shape[0])
        offsets = self.offsets[start : max(start, stop) + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        values = None if self.values is None else self.values[first:last]
        return Csr(offsets - first, self.indices[first:last], values, (len(offsets) - 1, self.shape[1]))

    def take(self, rows: Tensor) -> Csr:
        """The rows numbered by int64[n], in that order: a batch.

        >>> Csr.from_lists([[1], [0, 2]], columns=3).take(torch.tensor([1, 1, 0])).indices.tolist()
        [0, 2, 0, 2, 1]
        """
        if rows.dtype != torch.int64 or rows.ndim != 1:
            raise ValueError(f"rows are {rows.dtype}{list(rows.shape)}; expected torch.int64, one dimension")
        counts = self.counts()[rows]
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(counts, 0, out=offsets[1:])
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], counts)
        places = shift.add_(torch.arange(len(shift), device="cpu"))
        values = None if self.values is None else self.values[places]
        return Csr(offsets, self.indices[places], values, (len(rows), self.shape[1]))


def index_type(columns: int) -> torch.dtype:
    """int32 where every column has a number in it, else int64."""
    return torch.int32 if columns <= INT32_COLUMNS else torch.int64

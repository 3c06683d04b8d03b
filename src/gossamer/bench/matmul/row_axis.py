"""A product whose left operand has whole rows of zeros: the m axis."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from gossamer.bench.matmul.operands import draw, normal
from gossamer.bench.matmul.runtime import candidates, columns, compare
from gossamer.bench.section import Row, Section, Settings, Table

SELECTED = "torch, rows selected"


def _torch_rows(a: Tensor, b: Tensor) -> Tensor:
    """What a user writes in torch when whole rows may be zero."""
    rows = a.ne(0).any(1).nonzero().squeeze(1)
    return a.new_zeros(a.shape[0], b.shape[1]).index_copy_(0, rows, a.index_select(0, rows) @ b)


def rows(settings: Settings) -> Iterator[Row]:
    """One row per share of zeros."""
    m, k, n = (256, 128, 128) if settings.quick else (4096,) * 3 if settings.device == "cuda" else (2048, 1024, 1024)
    for zeros in (0.0, 0.25, 0.5, 0.75, 0.94):
        a, _ = draw(m, k, (1, k), 1 - zeros, settings)
        calls = candidates(a, b := normal(k, n, settings), (1, k))
        calls[SELECTED] = partial(_torch_rows, a, b)
        yield compare(settings, a, b, calls, zeros=zeros, shape=[m, k, n])


SECTION = Section(rows, Table(columns(SELECTED)))

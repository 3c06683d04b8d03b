"""Hypothesis strategies: matrices by their tiles, and patterns with slack and shuffled rows. Needs hypothesis.

from hypothesis import given
from gossamer.testing import strategies

@given(strategies.patterns())
def test_law(pattern): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from gossamer.pattern import Pattern
from gossamer.testing.cases import Case, Fill

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def cases(max_rows: int = 24, max_cols: int = 24, *, whole: bool = False) -> SearchStrategy[Case]:
    """Cases of every small size (0 included), any tile (also larger than the matrix), fill and density.

    `whole=True` rounds the size down to whole tiles, at least one of them.
    """
    from hypothesis import strategies as st

    def build(rows: int, cols: int, bm: int, bn: int, density: float, fill: Fill) -> Case:
        if whole:
            rows, cols = max(rows // bm, 1) * bm, max(cols // bn, 1) * bn
        return Case("drawn", rows, cols, (bm, bn), density, fill)

    return st.builds(
        build,
        st.integers(0, max_rows),
        st.integers(0, max_cols),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)),
        st.sampled_from(get_args(Fill)),
    )


def patterns(
    max_rows: int = 24, max_cols: int = 24, *, max_slack: int = 5, whole: bool = False
) -> SearchStrategy[Pattern]:
    """Patterns with up to `max_slack` slack slots (holding garbage) and the columns of each row in any order."""
    from hypothesis import strategies as st

    return st.builds(_pattern, cases(max_rows, max_cols, whole=whole), st.integers(0, 2**16), st.integers(0, max_slack))


def _pattern(case: Case, seed: int, slack: int) -> Pattern:
    tiles = case.tiles(seed)
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), tiles.sum(1).cumsum(0)])
    rows = [row.nonzero().flatten() for row in tiles]
    shuffled = [row[torch.randperm(len(row), generator=generator)] for row in rows]
    garbage = torch.randint(0, 2**15, (slack,), generator=generator)
    return Pattern(offsets, torch.cat([*shuffled, garbage]).to(torch.uint16), case.shape, case.tile)

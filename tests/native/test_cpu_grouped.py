"""Law: grouped products on the CPU refuse what cannot be right before memory is touched; numbers are in tests/laws."""

import pytest
import torch
from by_name import cpu

X, W, S, T, ENDS = torch.ones(4, 3), torch.ones(2, 3, 5), torch.arange(4), torch.arange(4), torch.tensor([0, 1, 4])
REFUSED = [
    ("dtype", lambda: cpu.grouped_mm(X.half(), S, T, ENDS, W, False, 4), TypeError, r"x must have .*float16"),
    ("mixed", lambda: cpu.grouped_mm(X, S, T, ENDS, W.double(), False, 4), TypeError, r"weights must have .*float64"),
    ("groups", lambda: cpu.grouped_mm(X, S, T, ENDS[1:], W, False, 4), ValueError, r"weights must be 1 matrices"),
    ("inner", lambda: cpu.grouped_mm(X, S, T, ENDS, W, True, 4), ValueError, r"with 3 columns, got shape \(2, 3, 5\)"),
    ("source", lambda: cpu.grouped_mm(X, S.short(), T, ENDS, W, False, 4), TypeError, r"source must have .*int16"),
    ("rows", lambda: cpu.grouped_mm(X, S, T, ENDS, W, False, -1), ValueError, r"out_rows must be at least 0 .*got -1"),
    ("dy", lambda: cpu.grouped_outer(X, X.double(), S, T, ENDS), TypeError, r"dy must have .*float64"),
    ("offsets", lambda: cpu.grouped_outer(X, X, S, T, ENDS[:0]), ValueError, r"an entry more than there are groups"),
]  # fmt: skip
CHECKED = [
    ("source", lambda: cpu.grouped_mm(X, S + 1, T, ENDS, W, False, 4), r"source\[3\] is 4, expected 0 <= row < 4"),
    ("target", lambda: cpu.grouped_mm(X, S, T - 1, ENDS, W, False, 4), r"target\[0\] is -1"),
    ("few", lambda: cpu.grouped_mm(X, S, T, ENDS, W, False, 3), r"target\[3\] is 3"),
    ("twice", lambda: cpu.grouped_mm(X, S, T * 0, ENDS, W, False, 4), r"target must not name a row twice, got row 0"),
    ("long", lambda: cpu.grouped_mm(X, S[:3], T, ENDS, W, False, 4), r"offsets must end at most at 3.*source, got 4"),
    ("none", lambda: cpu.grouped_outer(X, X, None, T, ENDS + 1), r"offsets must end at most at 4.*source, got 5"),
    ("falling", lambda: cpu.grouped_outer(X, X, S, T, ENDS.flip(0)), r"never decrease, got \[4, 1, 0\]"),
]


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [r[1:] for r in CHECKED], ids=[r[0] for r in CHECKED])
def test_checked_before_memory_is_touched(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Law: `sdd` on the CPU refuses what cannot be right before memory is touched; its numbers are in tests/laws."""

import pytest
import torch
from by_name import cpu

A, B = torch.ones(4, 3), torch.ones(3, 5)
OFFSETS, INDICES = torch.tensor([0, 1, 2]), torch.tensor([0, 2]).to(torch.uint16)
REFUSED = [
    ("inner", lambda: cpu.sdd(A, B.t(), OFFSETS, INDICES, 2, 2), ValueError, r"b must have 3 rows.*got shape \(5, 3\)"),
    ("a dtype", lambda: cpu.sdd(A.half(), B, OFFSETS, INDICES, 2, 2), TypeError, r"a must have dtype .*float16"),
    ("b dtype", lambda: cpu.sdd(A, B.double(), OFFSETS, INDICES, 2, 2), TypeError, r"b must have dtype .*float64"),
    ("stride", lambda: cpu.sdd(A[::2, ::2], B, OFFSETS, INDICES, 2, 2), ValueError, r"a must have a stride of 1"),
    ("tile", lambda: cpu.sdd(A, B, OFFSETS, INDICES, 2, 0), ValueError, r"tile must be at least \(1, 1\)"),
    ("offsets", lambda: cpu.sdd(A, B, OFFSETS, INDICES, 1, 2), ValueError, r"offsets must have 5 entries.*got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_checked_before_memory_is_touched():
    with pytest.raises(ValueError, match=r"indices\[1\] is 3, expected 0 <= index < 3 tile columns"):
        cpu.sdd(A, B, OFFSETS, torch.tensor([0, 3]).to(torch.uint16), 2, 2)

"""Law: `gather_mm` on the CPU refuses what cannot be right before memory is touched; its numbers are in tests/laws."""

import pytest
import torch
from by_name import cpu

REFUSED = [
    ("dtype", lambda a, b, s: cpu.gather_mm(a.half(), *s, 2, 2, b, False), TypeError, r"a must have .*float16"),
    ("mixed", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b.double(), False), TypeError, r"b must have .*float64"),
    ("inner", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[:, 1:], False), ValueError, r"b must have 4 rows.*\(1, 3,"),
    ("strides", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[..., ::2], False), ValueError, r"of b must have a stride"),
    ("straddles", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b.expand(2, -1, -1), False), ValueError, r"a must be 2"),
    ("two", lambda a, b, s: cpu.gather_mm(a, *s, 2, 2, b[0], False), ValueError, r"b must have 3 dimensions"),
    ("offsets", lambda a, b, s: cpu.gather_mm(a, s[0][1:], s[1], 2, 2, b, False), ValueError, r"offsets must have 4"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(
            torch.ones(6, 4), torch.ones(1, 4, 8), (torch.arange(0, 7, 2), torch.tensor([0, 1] * 3, dtype=torch.uint16))
        )

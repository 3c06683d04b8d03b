"""Law: `dsd` on the CPU refuses what cannot be right before memory is touched; its numbers are in tests/laws."""

import pytest
import torch
from by_name import cpu

V, S, J, B = torch.ones(2, 2, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1], dtype=torch.uint16), torch.ones(4, 3)
REFUSED = [
    ("values", (V[0], S, J, None, None, B, 3), ValueError, r"values must have 3 dimensions"),
    ("dtype", (V.half(), S, J, None, None, B, 3), TypeError, r"values must have dtype .*got torch.float16"),
    ("b dtype", (V, S, J, None, None, B.double(), 3), TypeError, r"b must have dtype torch.float32, got .*float64"),
    ("b float", (V.double(), S, J, None, None, B, 3), TypeError, r"b must have dtype torch.float64, got .*float32"),
    ("b strides", (V, S, J, None, None, torch.ones(8, 6)[::2, ::2], 3), ValueError, r"stride of 1 .*strides \(12, 2\)"),
    ("b dimensions", (V, S, J, None, None, B[0], 3), ValueError, r"b must have 2 dimensions"),
    ("rows", (V, S, J, None, None, B, -1), ValueError, r"rows must be at least 0 .*got -1"),
    ("offsets", (V, S, J, None, None, B, 5), ValueError, r"offsets must have 4 entries for 5 rows .*, got 3"),
    ("capacity", (V[:1], S, J, None, None, B, 3), ValueError, r"one tile per index: 2 indices, got 1 tiles"),
    ("no scale", (V.to(torch.int8), S, J, None, None, B, 3), ValueError, r"scale must be given for int8"),
    ("scale", (V, S, J, None, torch.ones(3), B, 3), ValueError, r"scale must have one entry per tile: 2 .* got 3"),
    ("scale dtype", (V, S, J, None, S[:2], B, 3), TypeError, r"scale must have dtype torch.float32"),
    ("order", (V, S, J, S, None, B, 3), ValueError, r"order must have one entry per tile: 2 tiles, got 3"),
    ("order dtype", (V, S, J, J, None, B, 3), TypeError, r"order must have dtype torch.int32 or torch.int64"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cpu.dsd(*arguments, False, False, None)


WORK = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
CONTENT = [
    (S, J.int().add(1).to(torch.uint16), None, None, r"indices\[1\] is 2, expected 0 <= index < 2"),
    (torch.tensor([0, 1, 3]), J, None, None, r"offsets must end at most at the capacity of 2 tiles, got 3"),
    (S, J, torch.tensor([0, 2]), None, r"order\[1\] is 2, expected 0 <= tile < 2"),
    (S, J, torch.tensor([-1, 1]), None, r"order\[0\] is -1, expected 0 <= tile < 2"),
    (S, J, None, WORK + torch.tensor([1, 0, 0]), r"work must name tile rows below 2, got 2"),
    (S, J, None, WORK[:, :1], r"work must hold every slot once"),
    (S, J, None, WORK + torch.tensor([0, 0, 1]), r"work must hold every slot once"),
    (S, J, None, WORK[:, [0, 0]], r"work must hold every slot once"),
]  # fmt: skip


@pytest.mark.parametrize(("offsets", "indices", "order", "work", "message"), CONTENT)
def test_content_is_checked_at_every_call(offsets, indices, order, work, message):
    assert cpu.dsd(V, S, J, S[:2], None, B, 3, False, False, WORK).eq(2).all()
    with pytest.raises(ValueError, match=message):
        cpu.dsd(V, offsets, indices, order, None, B, 3, False, False, work)

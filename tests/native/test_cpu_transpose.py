"""Law: `transpose` on the CPU refuses what cannot be right before memory is touched; its numbers are in tests/laws."""

import pytest
import torch
from by_name import cpu


def test_refused():
    offsets, indices = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1], dtype=torch.uint16)
    with pytest.raises(ValueError, match=r"tile_cols must be at least 0 .*got -1"):
        cpu.transpose(offsets, indices, -1)
    with pytest.raises(ValueError, match=r"offsets must have one entry more.*got 0"):
        cpu.transpose(offsets[:0], indices, 2)
    with pytest.raises(TypeError, match=r"offsets .*int64.*int32"):
        cpu.transpose(offsets.int(), indices, 2)
    with pytest.raises(TypeError, match=r"indices .*uint16 or .*int32"):
        cpu.transpose(offsets, offsets, 2)


def test_checked_before_memory_is_touched():
    offsets, indices = torch.tensor([0, 3, 6]), torch.tensor([0, 1, 2] * 2, dtype=torch.uint16)
    with pytest.raises(ValueError, match=r"indices\[\d\] is 2, expected 0 <= index < 2 tile columns"):
        cpu.transpose(offsets, indices, 2)

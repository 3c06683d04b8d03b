"""Law: reading memory, which benches compare with, sums its 64-bit words and then its last bytes."""

import numpy as np
import pytest
import torch
from by_name import cpu


@pytest.mark.parametrize("bytes_", [0, 1, 7, 8, 1023, 1024, 1031, 300_001])
def test_read_sums_words(isa, bytes_):
    x = np.random.default_rng(0).integers(0, 256, bytes_, dtype=np.uint8)
    words = bytes_ // 8 * 8
    total = int(x[:words].view(np.uint64).sum(dtype=np.uint64)) + int(x[words:].sum())
    assert cpu.read(torch.from_numpy(x)) == total % 2**64

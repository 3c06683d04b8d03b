"""Every instruction set in turn, and the one that was active restored."""

import sys
from pathlib import Path

import pytest
import torch

from gossamer import _native

sys.path.insert(0, str(Path(__file__).parent))  # modules beside the tests


# Others run the code of one of these, but for a few ops.
WHOLE = [isa for isa in _native.built_isas() if _native.ops_of(isa) == _native.ops_of("scalar")]


@pytest.fixture(params=WHOLE)
def isa(request):
    if request.param not in _native.available_isas():
        pytest.skip(f"this CPU does not run {request.param}")
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture(autouse=True)
def one_thread(anew):
    """A team that waits for a busy core makes small tests slow; the tests about threads ask for their own number."""
    torch.set_num_threads(1)

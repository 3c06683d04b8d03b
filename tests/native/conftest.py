"""Every instruction set in turn, and the one that was active restored."""

import pytest

from gossamer import _native


@pytest.fixture(params=_native.built_isas())
def isa(request):
    if request.param not in _native.available_isas():
        pytest.skip(f"this CPU does not run {request.param}")
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)

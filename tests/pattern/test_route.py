"""Law: routing by numpy (on a CPU) and by torch (anywhere) give the same index, and refuse what is too large."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.pattern import build

ids_of = st.lists(st.integers(-3, 6), max_size=40)
dtypes = st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8])


def by_torch(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_is_plain", lambda x: False)
        return build.route(*args)


@given(ids=ids_of, dtype=dtypes)
def test_both_ways_are_one(ids, dtype):
    ids = torch.tensor(ids, dtype=dtype).view(-1, 1)
    before = ids.clone()
    for one, two in zip(build.route(ids, 7), by_torch(ids, 7), strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)
    assert torch.equal(ids, before)


def test_a_destination_that_does_not_exist():
    for route in (build.route, by_torch):
        with pytest.raises(ValueError, match="where must be below n=7, got 9"):
            route(torch.tensor([[1], [9]]), 7, "where")

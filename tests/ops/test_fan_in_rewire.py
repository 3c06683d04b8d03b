"""Rewiring rows of fixed fan-in: what goes, what comes, what stays to the last bit, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.kernels.reference.fan_in_rewire import PROTECTED, keys_of
from gossamer.ops import fan_in_candidates, fan_in_indices, fan_in_rewire
from gossamer.testing import assert_same_bits


def connections(labels, width, k, group=1, dtype=torch.float32):
    """Values with ties, indices, two states and ages."""
    values = torch.where(torch.rand(labels, k) < 0.5, torch.randint(-2, 3, (labels, k)).float(), torch.randn(labels, k))
    indices = fan_in_indices(labels, width, k, group=group)
    states = [torch.randn(labels, k), torch.randn(labels, k)]
    return values.to(dtype), indices, states, torch.randint(0, 4, indices.shape, dtype=torch.uint8)


HOWS = (
    {"fraction": 0.3}, {"fraction": 0.3, "scope": "global"}, {"threshold": 0.7}, {"fraction": 1.0},
    {"fraction": 0.6, "avoid_dropped": False}, {"fraction": 0.9, "scope": "global", "init": 0.25},
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 16]), st.sampled_from(HOWS),
    st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.integers(0, 2**30),
)  # fmt: skip
def test_what_goes_what_comes_what_stays(labels, width, k, group, how, dtype, protected, seed):
    torch.manual_seed(seed)
    k = min(k, width)
    values, indices, states, ages = connections(labels, width, k, group, dtype)
    old_values, old_indices, old_states, old_ages = (
        values.clone(),
        indices.long(),
        [s.clone() for s in states],
        ages.clone(),
    )
    keys = keys_of(values, ages, group, 2 if protected else 0, slice(0, len(indices)))
    other = [each.clone() for each in (values, indices, *states, ages)]
    went = fan_in_rewire(
        values,
        indices,
        width,
        states=states,
        ages=ages,
        min_age=2 if protected else 0,
        group=group,
        seed=seed,
        step=3,
        **how,
    )

    new = indices.long()
    assert new.max() < width and (new.diff(dim=1) > 0).all()  # sorted, unique, in range
    stays = (new[:, :, None] == old_indices[:, None, :]) & (ages > 0)[:, :, None]
    fresh = ~stays.any(2)
    assert int(fresh.sum()) == int(went)
    assert (ages[fresh] == 0).all()
    for row in range(len(indices)):
        dropped = ~stays[row].any(0)
        m, mine = int(dropped.sum()), keys[row]
        assert (mine[dropped] != PROTECTED).all()
        # The dropped are the m smallest, of equal ones the first.
        assert dropped.nonzero().flatten().tolist() == mine.sort(stable=True).indices[:m].sort().values.tolist()
        if how.get("avoid_dropped", True):
            assert not set(new[row][fresh[row]].tolist()) & set(old_indices[row].tolist())
        source = stays[row].float().argmax(1)
        for label in range(row * group, min((row + 1) * group, labels)):
            for tensor, before in zip((values, *states), (old_values, *old_states), strict=True):
                assert_same_bits(tensor[label][~fresh[row]], before[label][source][~fresh[row]])
            assert (values[label][fresh[row]].abs() <= how.get("init", 0)).all()
            assert all(not state[label][fresh[row]].any() for state in states)
        assert (ages[row][~fresh[row]] == old_ages[row][source][~fresh[row]] + 1).all()
    again = fan_in_rewire(
        *other[:2], width, states=other[2:4], ages=other[4], min_age=2 if protected else 0, group=group, seed=seed,
        step=3, backend="reference", **how,
    )  # fmt: skip
    assert int(again) == int(went)
    for found, expected in zip((values, indices, *states, ages), other, strict=True):
        assert_same_bits(found, expected)


def test_how_many_go():
    values, indices, _, ages = connections(100, 50, 10)
    each = fan_in_rewire(values.clone(), indices.clone(), 50, fraction=0.34)
    assert int(each) == 300
    assert int(fan_in_rewire(values.clone(), indices.clone(), 50, fraction=0.123, scope="global")) == 123
    assert int(fan_in_rewire(values.clone(), indices.clone(), 50, threshold=0.5)) == int((values.abs() < 0.5).sum())
    assert (
        int(fan_in_rewire(values.clone(), indices.clone(), 12, fraction=1.0) if indices.long().max() < 12 else 0) == 0
    )
    narrow = fan_in_indices(100, 12, 10)
    assert int(fan_in_rewire(values.clone(), narrow, 12, fraction=1.0)) == 200  # width - k of each row
    old = int((ages >= 2).sum())
    assert int(fan_in_rewire(values, indices, 50, fraction=1.0, ages=ages, min_age=2)) == old


def test_scores_stay_when_what_goes_was_zero():
    """Growth starts at zero, so a row that loses zeros computes what it did."""
    values, indices, _, _ = connections(200, 40, 8)
    values[torch.rand(200, 8) < 0.3] = 0
    x = torch.randn(5, 40)
    before = torch.zeros(200, 40).scatter_(1, indices.long(), values)
    went = fan_in_rewire(values, indices, 40, threshold=1e-30)
    assert int(went) > 100
    after = torch.zeros(200, 40).scatter_(1, indices.long(), values)
    assert_same_bits(x @ after.t(), x @ before.t())


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("how", ["first", "new", "candidates"])
def test_every_set_is_as_likely(how):
    """All 15 pairs of 6 free inputs, and that neighbouring rows are independent: chi-square, 15 or 225 cells."""
    rows, width, taken = 45_000, 10, torch.tensor([1, 4, 5, 8])
    if how == "first":
        pairs = fan_in_indices(rows, 6, 2, seed=5).long()
        free = torch.arange(6)
    else:
        indices = taken.repeat(rows, 1).to(torch.uint16)
        free = torch.tensor([column for column in range(width) if column not in taken.tolist()])
        if how == "candidates":
            pairs = fan_in_candidates(indices, width, 2, seed=5).long()
        else:
            values = torch.tensor([9.0, 0.1, 9.0, 0.2]).repeat(rows, 1)
            assert int(fan_in_rewire(values, indices, width, fraction=0.5, seed=5)) == 2 * rows
            fresh = indices.long()
            pairs = fresh[(fresh != 1) & (fresh != 5)].view(rows, 2)
            assert (values != 0).sum() == 2 * rows
    place = torch.searchsorted(free, pairs)
    number = torch.zeros(6, 6, dtype=torch.int64)
    number[tuple(torch.triu_indices(6, 6, 1))] = torch.arange(15)
    cell = number[place[:, 0], place[:, 1]]
    assert chi_square(cell.bincount(minlength=15).double(), rows / 15) < 42  # 14 degrees: 1 in 10 000
    both = (cell[:-1] * 15 + cell[1:]).bincount(minlength=225).double()
    assert chi_square(both, (rows - 1) / 225) < 308  # 224 degrees


def test_shares_of_the_labels_are_as_the_whole():
    values, indices, _, _ = connections(96, 30, 6, 16)
    assert_same_bits(torch.cat([fan_in_indices(48, 30, 6, group=16, first=a) for a in (0, 48)]), indices)
    parts = [(values[a:b].clone(), indices[a // 16 : b // 16].clone(), a) for a, b in ((0, 32), (32, 96))]
    fan_in_rewire(values, indices, 30, fraction=0.5, group=16, seed=1, step=9, init=1.0)
    for some, mine, first in parts:
        fan_in_rewire(some, mine, 30, fraction=0.5, group=16, seed=1, step=9, init=1.0, first=first)
    assert_same_bits(torch.cat([some for some, _, _ in parts]), values)
    assert_same_bits(torch.cat([mine for _, mine, _ in parts]), indices)


def test_seed_and_step_choose():
    def one(seed, step):
        values, indices = torch.zeros(50, 4), fan_in_indices(50, 100, 4)
        fan_in_rewire(values, indices, 100, fraction=1.0, seed=seed, step=step)
        return indices.long()

    assert torch.equal(one(1, 2), one(1, 2))
    assert not torch.equal(one(1, 2), one(1, 3)) and not torch.equal(one(1, 2), one(2, 2))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_it_refuses_and_then_writes_nothing(backend):
    values, indices, states, ages = connections(40, 20, 5)
    kept = [each.clone() for each in (values, indices, *states, ages)]

    def refused(message, kind=ValueError, v=values, i=indices, width=20, **how):
        with pytest.raises(kind, match=message):
            fan_in_rewire(v, i, width, backend=backend, **{"fraction": 0.4, **how})
        for found, before in zip((values, indices, *states, ages), kept, strict=True):
            assert_same_bits(found, before)

    refused("one of fraction and threshold must be given", fraction=None)
    refused("one of fraction and threshold must be given", threshold=1.0)
    refused("fraction must be a number from 0 to 1, got 1.5", fraction=1.5)
    refused(
        "threshold must be a number of at least 0, finite in float32, got nan", fraction=None, threshold=float("nan")
    )
    refused("scope must be 'row' or 'global', got 'all'", scope="all")
    refused("width must be an integer of at least 5", width=4)
    refused(r"states\[1\] must have shape \(40, 5\)", states=[states[0], states[1][:3]])
    refused("states must be a list of at most two", states=[states[0]] * 3)
    refused("min_age must be 0 without ages, got 1", min_age=1)
    refused("first must be an integer of at least 0, got -16", first=-16)
    refused(r"values must have dtype .* got torch.float64", TypeError, v=values.double())
    refused("init must be a number of at least 0, finite in float32", init=-1.0)
    for name, wrong in (
        ("fraction", "x"), ("seed", 2**63), ("step", 0.5), ("min_age", None), ("init", 1e300), ("group", 1.0),
        ("width", "9"), ("avoid_dropped", "no"), ("states", torch.zeros(1)),
    ):  # fmt: skip
        refused(f"{name} must be", (TypeError, ValueError), **{name: wrong})
    for wrong in (3, (indices,), "ab"):
        refused(r"candidates must be a pair \(indices, scores\), got", TypeError, candidates=wrong)
    for wrong in (20, -1):
        broken = indices.to(torch.int32)
        broken[39, 4] = wrong
        refused("indices", i=broken)
    broken = indices.to(torch.int32)
    broken[39] = broken[39].flip(0)
    refused("indices must ascend in each row", i=broken)
    others = fan_in_candidates(indices, 20, 3)
    scores = torch.randn(40, 3)
    refused("candidates must have 40 rows", candidates=(others[:3], scores[:3]))
    refused("candidates must not be connected already", candidates=(indices[:, :3].contiguous(), scores))
    refused("candidates must ascend", candidates=(others.to(torch.int32).flip(1).to(torch.uint16), scores))
    assert fan_in_rewire(values, indices, 20, fraction=0.4, candidates=(others, scores), backend=backend) == 80


def test_what_first_connections_refuse():
    for how in ((3, 5, 6), (-1, 5, 2), (3, 2**31 + 1, 2)):
        with pytest.raises(ValueError, match=r"width must be|labels must be"):
            fan_in_indices(*how)
    with pytest.raises(ValueError, match=r"out must be torch.uint16\[3, 2\]"):
        fan_in_indices(3, 5, 2, out=torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(
        ValueError, match="width must be an integer of at least 7, the connections of a row and n, got 6"
    ):
        fan_in_candidates(torch.zeros(2, 4, dtype=torch.int32), 6, 3)
    with pytest.raises(ValueError, match="indices must ascend"):
        fan_in_candidates(torch.tensor([[2, 1]], dtype=torch.int32), 6, 3)
    assert fan_in_indices(2, 70_000, 2).dtype == torch.int32
    assert fan_in_indices(3, 4, 4).tolist() == [[0, 1, 2, 3]] * 3

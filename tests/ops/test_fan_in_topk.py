"""The best labels without all scores: filters, ties, shares of labels, single rows, and what is refused."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import _native
from gossamer.ops import fan_in_indices, fan_in_topk, merge_topk
from gossamer.testing import assert_same_bits


def classifier(labels, width, k, *, group=1, dtype=torch.float32, ties=False):
    """Values, indices and bias; with `ties` of few different numbers."""
    values = torch.randint(-1, 2, (labels, k)).to(dtype) if ties else torch.randn(labels, k).to(dtype)
    bias = torch.zeros(labels) if ties else torch.randn(labels)
    return values, fan_in_indices(labels, width, k, group=group), bias


def brute_force(x, values, indices, bias, group, k, exclude, never):
    rows = indices.long().repeat_interleave(group, 0)[: len(values)]
    scores = (x.double()[:, rows] * values.double()).sum(2) + bias
    scores[:, never] = -torch.inf
    for row, ids in enumerate(exclude):
        scores[row, ids] = -torch.inf
    order = scores.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 40), st.integers(1, 70), st.integers(1, 12), st.sampled_from([1, 16]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**30),
)  # fmt: skip
def test_it_is_a_sort_of_all_scores(labels, width, batch, k, group, dtype, seed):
    """Few different numbers, so that ties are everywhere, and filters that hit what would be best."""
    torch.manual_seed(seed)
    values, indices, bias = classifier(labels, width, min(width, 7), group=group, dtype=dtype, ties=True)
    x = torch.randint(-2, 3, (batch, width)).float()
    exclude = [torch.randperm(labels)[: int(torch.randint(0, 5, ()))].sort().values for _ in range(batch)]
    never = torch.randperm(labels)[: labels // 5].sort().values
    offsets = torch.tensor([0, *torch.tensor([len(ids) for ids in exclude]).cumsum(0).tolist()])
    expected = brute_force(x, values, indices, bias, group, k, exclude, never)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            scores, ids = fan_in_topk(
                x, values, indices, k, bias=bias, group=group, exclude=(offsets, torch.cat(exclude)), never=never
            )
            found = min(k, labels)
            real = expected[0] > -torch.inf
            assert torch.equal(scores[:, :found], expected[0].float())
            assert torch.equal(ids[:, :found][real], expected[1][real])
            assert (ids[:, :found][~real] == -1).all() and (ids[:, found:] == -1).all()
            assert (scores[:, found:] == -torch.inf).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch_nor_on_the_team(dtype):
    values, indices, bias = classifier(20_000, 96, 8, dtype=dtype)
    x = torch.randn(70, 96)
    torch.set_num_threads(1)
    whole = fan_in_topk(x, values, indices, 9, bias=bias)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for at in (0, 31, 69):
            for part in (x[at : at + 1], x[at : at + 1].t().contiguous().t()):
                for found, expected in zip(fan_in_topk(part, values, indices, 9, bias=bias), whole, strict=True):
                    assert_same_bits(found, expected[at : at + 1])
        for found, expected in zip(fan_in_topk(x, values, indices, 9, bias=bias), whole, strict=True):
            assert_same_bits(found, expected)


def test_shares_of_the_labels_merge_to_the_whole():
    values, indices, bias = classifier(1000, 30, 6, ties=True)
    x, never = torch.randint(-2, 3, (11, 30)).float(), torch.tensor([3, 500, 999])
    whole = fan_in_topk(x, values, indices, 20, bias=bias, never=never)
    cuts = (0, 7, 512, 1000)
    parts = [
        fan_in_topk(x, values[a:b], indices[a:b], 20, bias=bias[a:b], never=never, first=a) for a, b in pairwise(cuts)
    ]
    for found, expected in zip(merge_topk(parts[::-1], 20), whole, strict=True):
        assert_same_bits(found, expected)


def test_labels_beyond_24_bits_keep_their_number():
    values, indices, _ = classifier(100, 8, 2)
    first = 3_000_000_001
    ids = fan_in_topk(torch.randn(4, 8), values, indices, 3, first=first, never=torch.tensor([first + 5]))[1]
    expected = fan_in_topk(torch.randn(4, 8), values, indices, 100, never=torch.tensor([5]))
    assert ids.min() >= first and first + 5 not in ids and len(expected[1].unique()) == 100  # 99, and -1


def test_memory_does_not_depend_on_the_number_of_labels():
    """The workspace is all that a call allocates; from 32 to 512 rows it grows by less than a block of scores."""
    room = {
        (labels, batch): _native.fan_in_topk_workspace((batch, 768, labels, 64, 1, 2, 4), 5, 2)
        for labels in (10_000, 3_000_000, 100_000_000)
        for batch in (32, 512)
    }
    assert len({room[labels, 512] for labels in (10_000, 3_000_000, 100_000_000)}) == 1
    assert room[3_000_000, 512] - room[3_000_000, 32] < 4096 * 512 * 4


def test_what_has_no_rank_is_refused_unless_excluded():
    values, indices, bias = classifier(50, 9, 3)
    values[17, 0] = torch.nan
    for batch in (1, 4):
        for backend in ("cpu", "reference"):
            with pytest.raises(ValueError, match="NaN"):
                fan_in_topk(torch.ones(batch, 9), values, indices, backend=backend)
        assert 17 not in fan_in_topk(torch.ones(batch, 9), values, indices, 50, never=torch.tensor([17]))[1]
    values[17, 0] = -torch.inf
    ids = fan_in_topk(torch.ones(2, 9), values, indices, 51, bias=bias)[1]
    assert ids[:, 49].tolist() == [17, 17] and ids[:, 50].tolist() == [-1, -1]  # the lowest score, and none


def test_what_it_refuses():
    values, indices, bias = classifier(50, 9, 3)
    x = torch.randn(4, 9)

    def refused(message, kind=ValueError, at=x, v=values, i=indices, **how):
        with pytest.raises(kind, match=message):
            fan_in_topk(at, v, i, **how)

    refused("k must be an integer of at least 1, got 0", k=0)
    refused("x must have dtype torch.float32, got torch.float64", TypeError, at=x.double())
    refused("values must have dtype .* got torch.float16", TypeError, v=values.half())
    refused(r"indices must have the shape \(4, 3\) for 50 labels in groups of 16", group=16)
    refused("bias must have 50 entries", bias=bias[:49])
    refused("exclude must have 5 offsets", exclude=(torch.zeros(4, dtype=torch.int64), torch.tensor([1])))
    refused("exclude must have offsets from 0", exclude=(torch.tensor([0, 1, 2, 3, 9]), torch.tensor([1])))
    refused("never must list ids of a row in ascending order, each once, got 5 before 5", never=torch.tensor([1, 5, 5]))
    refused("first must be", first=-1)
    offsets = torch.tensor([0, 2, 2, 4, 4])
    refused("in ascending order, each once, got 9 before 2", exclude=(offsets, torch.tensor([1, 3, 9, 2])))
    fan_in_topk(x, values, indices, exclude=(offsets, torch.tensor([1, 9, 3, 5])))
    for backend in ("cpu", "reference"):
        broken = indices.to(torch.int32)
        broken[4, 2] = 9
        refused("indices", i=broken, backend=backend)
    for wrong in (3, (offsets,), "ab"):
        refused(r"exclude must be a pair \(offsets, ids\), got", TypeError, exclude=wrong)
    refused("values must be a strided .dense. tensor, got layout torch.sparse_coo", TypeError, v=values.to_sparse())
    refused("bias must be a strided .dense. tensor, got layout", TypeError, bias=bias.to_sparse())
    part = fan_in_topk(x, values, indices)
    with pytest.raises(ValueError, match=r"parts\[0\]\[1\] must be on the device of parts\[0\]\[0\], cpu, got meta"):
        merge_topk([(part[0], part[1].to("meta"))], 1)
    with pytest.raises(ValueError, match=r"k must be an integer of at least 1, got 2\.5"):
        merge_topk([part], 2.5)
    with pytest.raises(TypeError, match=r"parts\[1\] must be a pair \(scores, ids\), got int"):
        merge_topk([part, 3], 2)
    with pytest.raises(ValueError, match="parts must be pairs of matrices of one batch"):
        merge_topk([], 3)

"""Law: keys and values as codes are the same codes whoever writes them, and mean the same to whoever reads them."""

import pytest
import torch
from backends import EVERY, REFERENCE, on

from gossamer.ops import Batch, PagePool
from gossamer.testing import assert_same_bits

CASES = [(stored, *sizes) for stored in ("int8", "int4") for sizes in ((32, 32), (96, 64))]
SOURCES, HEADS, GROUP = torch.tensor([2, 0]), torch.tensor([3, 0]), 3


def appended(backend, stored, width, page):
    """A pool with two requests, one of them in two pages, and these; a value has NaN, and a token no range."""
    pool = PagePool.allocate(4, 2, width, stored=stored, page=page)
    for each in pool.tensors:
        each.zero_()
    batch = Batch.of([page + 5, 3], [page + 5, page - 2], [[3, 1], [0]])
    keys, values = torch.randn(page + 8, 3, width), 9 * torch.randn(page + 8, 3, width)
    keys[7], values[4, 2, width - 1], values[7] = -0.3, torch.nan, 0.7
    written = pool.keys, pool.values, pool.key_scales, pool.value_scales, pool.extremes
    structure = batch.offsets, batch.lengths, batch.table
    args = keys, values, SOURCES, *pool.numbers, pool.extremes, None, None, None, *structure
    results = backend.results("page_append", args, (3, 4, 5, 6, 8))
    for mine, theirs in zip(written, results, strict=True):
        mine.copy_(theirs)
    return pool, structure


@on(EVERY, "stored, width, page", CASES, small=lambda case: case[1] == 32)
def test_the_codes_are_those_of_the_reference(backend, stored, width, page):
    torch.manual_seed(1)
    pool, _ = appended(backend, stored, width, page)
    torch.manual_seed(1)
    oracle, _ = appended(REFERENCE, stored, width, page)
    for mine, theirs in zip(pool.tensors, oracle.tensors, strict=True):
        if mine is not pool.moments:
            assert_same_bits(mine.float().nan_to_num(), theirs.float().nan_to_num())


@on(EVERY, "stored, width, page", CASES, small=lambda case: case[1] == 32)
def test_attention_and_scores_read_them_as_the_reference_does(backend, stored, width, page):
    pool, structure = appended(REFERENCE, stored, width, page)
    q = torch.randn(page + 8, 6, width)
    out = torch.zeros_like(q)
    args = q, out, None, HEADS, GROUP, *pool.numbers, *structure, None, None, 2**40, None, 0, width**-0.5, 0.0
    results = [each.results("page_attention", args, (1,))[0] for each in (backend, REFERENCE)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4, equal_nan=True)
    token = q[:2], HEADS, GROUP, pool.keys, pool.key_scales, *structure[1:]
    scores = [each("page_key_scores", *token) for each in (backend, REFERENCE)]
    assert_same_bits(*scores)
    # Half a scale of the upper bits from what attention reads.
    read = pool.read_keys(structure[2][0])[:, 0].flatten(0, 1)[: page + 5]
    exact = (q[0, 3] @ read.nan_to_num().t()).max()
    step = 16 if stored == "int8" else 1
    slack = pool.key_scales[:, 0, 0].float().nan_to_num().max() * step / 2 + read.nan_to_num().abs().max() / 100
    assert float(scores[0][0, 3].max()) == pytest.approx(float(exact), abs=float(slack * q[0, 3].abs().sum()))

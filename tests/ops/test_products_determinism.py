"""Law: products do not depend on the run, on threads or on slack; a new pattern allocates nothing."""

import pytest
import torch

import gossamer as gs
from gossamer.testing import assert_same_bits, product

NAMES = ["elements, wide", "16 x 16", "64 x 64", "32 x 1", "power law", "one crowded row of elements"]
some = pytest.mark.parametrize("c", [product(name) for name in NAMES], ids=NAMES)


def results(c):
    p, s = c.pattern(), c.sparse()
    rows, k = c.case.shape
    values, a, b = c.values(p, s), c.dense(c.n, rows), c.dense(k, c.n)
    t = gs.ops.transpose(p)
    index = gs.Pattern(p.offsets, p.indices[: p.nnz], p.shape, p.tile)
    return (
        gs.ops.dsd(values, p, b),
        gs.ops.dds(a, values, p),
        gs.ops.sdd(a.t(), b.t(), p),
        t.pattern.indices,
        t.order,
        gs.ops.matmul(s, b, index=index),
    )


@some
def test_threads_and_runs(c):
    every = []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        every.append(results(c))
    for other in every[1:]:
        for one, two in zip(every[0], other, strict=True):
            assert_same_bits(one, two)


@some
def test_slack_and_the_order_of_slots_in_a_row(c):
    s, b = c.sparse(integers=True), c.dense(c.case.cols, c.n, integers=True)
    for slack in (0, 1, 33):
        p = c.pattern(slack=slack)
        assert torch.equal(gs.ops.dsd(c.values(p, s), p, b), s @ b)


def test_a_hundred_patterns_in_the_same_memory():
    """One capacity, one set of buffers: whatever pattern arrives, the answer is right and no index is allocated."""
    c = product("8 x 8")
    p = gs.Pattern.full(c.case.shape, c.case.tile)
    values = torch.empty(p.capacity, *p.tile)
    b = c.dense(c.case.cols, c.n, integers=True)
    addresses = p.offsets.data_ptr(), p.indices.data_ptr(), values.data_ptr()
    for seed in range(100):
        s = c.sparse(integers=True, seed=seed)
        p.copy_(c.pattern(seed))
        values.copy_(p.pack(s))
        assert torch.equal(gs.ops.dsd(values, p, b), s @ b)
    assert addresses == (p.offsets.data_ptr(), p.indices.data_ptr(), values.data_ptr())


def test_deterministic_mode_changes_nothing():
    c = product("power law")
    expected = results(c)
    torch.use_deterministic_algorithms(True)
    try:
        for one, two in zip(expected, results(c), strict=True):
            assert_same_bits(one, two)
    finally:
        torch.use_deterministic_algorithms(False)

"""Attention over pages: errors are derived, bits depend on nothing that does not matter, broken tables are refused."""

import itertools
import re

import pytest
import torch
from paged_cases import STORED, error_bound, filled, multiplies_bfloat16

import gossamer as gs
from gossamer.ops import Batch, PagePool, page_append, page_attention, page_choose, page_scores
from gossamer.testing import assert_no_recompile, assert_same_bits, assert_within, gamma, unit_roundoff

MASKS = ({}, {"window": 50}, {"window": 40, "sink": 70}, {"cap": 3.0})


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    "width, heads, group, page", [(64, 3, 3, 64), (80, 1, 1, 32), (128, 1, 4, 64), (256, 1, 5, 32), (96, 2, 2, 128)]
)
def test_numbers(isa, stored, width, heads, group, page):
    if stored == "int4" and width % 32:
        pytest.skip("four bits need a width that is a multiple of 32")
    lengths = [1, 31, 65, 100]
    pool, batch, keys, values = filled(lengths, heads, width, stored=stored, page=page)
    q, weight = torch.randn(sum(lengths), heads * group, width), 0.0
    if multiplies_bfloat16(isa, stored):
        q, weight = q.bfloat16().float(), 1.01 * unit_roundoff(torch.bfloat16)
    for mask in MASKS:
        got, exact = (torch.full(q.shape[:2], torch.nan) for _ in range(2))
        out = page_attention(q, pool, batch, group=group, lse=got, **mask)
        oracle = page_attention(q, pool, batch, group=group, lse=exact, backend="reference", **mask)
        bound = error_bound(q, 1.1 * keys, 1.1 * values, width**-0.5, max(lengths), weight)
        assert_within(out, oracle, bound)
        assert_within(got, exact, bound / values.abs().max() + 2**-20 * exact.abs())


def test_products_of_bfloat16_round_what_they_meet_and_nothing_else(isa):
    """The query, once; a weight and its share of the sum alike: the mean of what is one number is that number."""
    torch.manual_seed(5)
    lengths = [1500, 40]
    pool, batch, _, _ = filled(lengths, 2, 48, stored="bfloat16")
    pool.values.fill_(1.375)
    q = 2 * torch.randn(1540, 6, 48)
    lse, rounded = torch.zeros(1540, 6), torch.zeros(1540, 6)
    out = page_attention(q, pool, batch, group=3, lse=lse)
    assert_within(out, torch.full_like(out, 1.375), torch.tensor(1.375 * gamma(1500, torch.float32)))
    again = page_attention(q.bfloat16().float(), pool, batch, group=3, lse=rounded)
    if multiplies_bfloat16(isa, "bfloat16"):
        assert_same_bits(out, again)
        assert_same_bits(lse, rounded)
    else:
        assert not torch.equal(lse, rounded)


def test_what_was_never_written_is_not_read(isa):
    for stored in ("float32", "bfloat16", "float16"):
        pool = PagePool.allocate(3, 1, 48, stored=stored)
        pool.keys.fill_(torch.nan), pool.values.fill_(torch.nan)
        for length in (1, 2, 35, 64, 65):
            batch = Batch.of([length], [length], [[2, 0]])
            page_append(torch.ones(length, 1, 48), torch.ones(length, 1, 48), pool, batch)
            out = page_attention(torch.ones(length, 2, 48), pool, batch, group=2)
            assert_within(out, torch.ones_like(out), torch.tensor(gamma(length, torch.float32)))


def test_one_key_head_of_many_query_heads(isa):
    """More than meet a page together."""
    pool, batch, keys, values = filled([40, 3], 1, 16)
    q = torch.randn(43, 71, 16)
    out, oracle = (page_attention(q, pool, batch, group=71, backend=backend) for backend in (None, "reference"))
    assert_within(out, oracle, error_bound(q, keys, values, 0.25, 40))


@pytest.mark.parametrize("stored", STORED)
def test_bits_depend_neither_on_how_a_prompt_is_cut_nor_on_the_batch_nor_on_the_team(isa, stored):
    """Prefill at once, in pieces of any length, and token by token beside other requests: the same bits everywhere."""
    torch.manual_seed(1)
    length = 1040 if stored == "float32" or multiplies_bfloat16(isa, stored) else 130
    keys, values, q = torch.randn(length, 2, 32), torch.randn(length, 2, 32), torch.randn(length, 6, 32)
    pages = torch.randperm(40)[:18].tolist()
    masks = ({}, {"window": 70, "sink": 20})

    def run(cuts, others, threads):
        torch.set_num_threads(threads)
        pool = PagePool.allocate(60, 2, 32, stored=stored)
        out = [torch.zeros_like(q) for _ in masks]
        at = 0
        for cut in cuts:
            n, place = cut - at, slice(at, cut)
            counts, lengths, tables = [n], [cut], [pages]
            extra = torch.randn(others, 2, 32)
            if others:
                counts, lengths, tables = [others, n], [others, cut], [[55], pages]
            batch = Batch.of(counts, lengths, tables)
            page_append(torch.cat([extra, keys[place]]), torch.cat([extra, values[place]]), pool, batch)
            for result, mask in zip(out, masks, strict=True):
                queries = torch.cat([torch.randn(others, 6, 32), q[place]])
                result[place] = page_attention(queries, pool, batch, group=3, **mask)[others:]
            at = cut
        return out, [each.clone() for each in (pool.keys, pool.values, pool.extremes)], pages

    try:
        whole, written, _ = run([length], 0, 1)
        ways = [([length], 3, 3), ([1, 65, 129, length], 1, 2)]
        if length > 1000:
            ways.append(([1023, 1024, 1025, 1030, length], 0, 2))
        for cuts, others, threads in ways:
            out, again, used = run(cuts, others, threads)
            for got, expected in zip(out, whole, strict=True):
                assert_same_bits(got, expected)
            for got, expected in zip(again, written, strict=True):
                full = used[: length // 64]
                assert_same_bits(got[full], expected[full])
    finally:
        torch.set_num_threads(1)


def test_lists_name_the_pages_that_are_seen(isa):
    torch.manual_seed(0)
    lengths = [1, 700, 2000]
    pool, batch, keys, values = filled(lengths, 2, 32)
    newest = Batch(torch.arange(4), batch.lengths, batch.table)
    q = torch.randn(3, 4, 32)
    pages = [-(-length // 64) for length in lengths]
    every = [list(range(pages[r])) for r in range(3) for _ in range(2)]
    some = [sorted({*torch.randperm(len(row))[:7].tolist(), len(row) - 1}) for row in every]

    def lists(rows):
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
        return gs.Pattern(
            offsets, torch.tensor([page for row in rows for page in row], dtype=torch.int32), (6, 40), (1, 1)
        )

    assert_same_bits(
        page_attention(q, pool, newest, group=2, lists=lists(every)), page_attention(q, pool, newest, group=2)
    )
    out = page_attention(q, pool, newest, group=2, lists=lists(some))
    begin = 0
    for r, length in enumerate(lengths):
        for h in range(2):
            named = torch.tensor(some[2 * r + h])
            seen = torch.isin(torch.arange(length) // 64, named)
            k, v = (x[begin : begin + length, h][seen].double() for x in (keys, values))
            mine = q[r, 2 * h : 2 * h + 2].double()
            exact = torch.softmax(mine @ k.t() / 32**0.5, -1) @ v
            assert_within(out[r, 2 * h : 2 * h + 2], exact, error_bound(q, keys, values, 32**-0.5, length))
        begin += length


def test_lists_of_blocks_in_prefill(isa):
    """Rows of lists are (block of tokens, head); a list that leaves a page out hides it from these tokens only."""
    pool, batch, _, _ = filled([200, 130], 2, 32)
    q = torch.randn(330, 4, 32)
    blocks = [-(-200 // 48), -(-130 // 48)]
    rows = []
    for n, length in zip(blocks, (200, 130), strict=True):
        for b, h in itertools.product(range(n), range(2)):
            last = min(length, (b + 1) * 48) - 1
            rows.append([p for p in range(last // 64 + 1) if p == last // 64 or (p + h + b) % 2])
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    lists = gs.Pattern(
        offsets,
        torch.tensor([page for row in rows for page in row], dtype=torch.int32),
        (48 * len(rows), 4),
        (48, 1),
    )
    out = page_attention(q, pool, batch, group=2, lists=lists)
    oracle = page_attention(q, pool, batch, group=2, lists=lists, backend="reference")
    torch.testing.assert_close(out, oracle, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, page_attention(q, pool, batch, group=2), atol=1e-3)


def test_two_pools_share_one_result():
    """Each writes its own heads: what a pool of streaming heads leaves alone, that of dense heads fills in."""
    torch.manual_seed(0)
    keys, values, q = torch.randn(90, 3, 32), torch.randn(90, 3, 32), torch.randn(90, 6, 32)
    whole = PagePool.allocate(2, 3, 32)
    batch = Batch.of([90], [90], [[1, 0]])
    page_append(keys, values, whole, batch)
    parts = (PagePool.allocate(2, 1, 32), PagePool.allocate(2, 2, 32))
    out = torch.full_like(q, torch.nan)
    for pool, heads in zip(parts, ([1], [2, 0]), strict=True):
        chosen = torch.tensor(heads)
        page_append(keys, values, pool, batch, heads=chosen)
        page_attention(q, pool, batch, heads=2 * chosen, group=2, out=out)
    assert_same_bits(out, page_attention(q, whole, batch, group=2))


def test_pages_that_nobody_sees_need_not_exist():
    """A streaming head has given them back: their entries in the table are none."""
    pool, batch, _, _ = filled([500], 1, 32)
    q = torch.randn(500, 1, 32)[-1:]
    newest = Batch(torch.tensor([0, 1]), batch.lengths, batch.table)
    expected = page_attention(q, pool, newest, window=100, sink=10)
    table = batch.table.clone()
    table[0, 1:6] = -1
    assert_same_bits(
        page_attention(q, pool, Batch(newest.offsets, newest.lengths, table), window=100, sink=10), expected
    )
    with pytest.raises(ValueError, match=re.escape("table[0, 1] is -1, expected 0 <= page < 11")):
        page_attention(q, pool, Batch(newest.offsets, newest.lengths, table))


def test_a_decoding_step_is_one_graph():
    pool, batch, _, _ = filled([130, 70], 2, 32, sketched=True)

    def step(q, key, lengths, table):
        here = Batch(torch.arange(3), lengths, table)
        page_append(key, key, pool, here)
        scores = page_scores(q, pool, here, by="keys", group=2)
        chosen = page_choose(scores, here, 2, group=2)
        return page_attention(q, pool, here, group=2), page_scores(q, pool, here, group=2), scores, chosen

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(2, 4, 32), torch.randn(2, 2, 32), batch.lengths, batch.table)
    with assert_no_recompile():
        for grow in (1, 2):
            q, key, lengths = torch.randn(2, 4, 32), torch.randn(2, 2, 32), batch.lengths + grow
            for got, expected in zip(
                compiled(q, key, lengths, batch.table), step(q, key, lengths, batch.table), strict=True
            ):
                assert_same_bits(got, expected)


def broken(**changes):
    """A call with one argument that is not what it should be."""
    pool, batch, _, _ = filled([100, 30], 2, 32)
    parts = {"offsets": batch.offsets, "lengths": batch.lengths, "table": batch.table}
    given = {"q": torch.randn(130, 4, 32), "group": 2} | {k: v for k, v in changes.items() if k not in parts}
    parts |= {k: v for k, v in changes.items() if k in parts}
    return page_attention(given.pop("q"), pool, Batch(**parts), **given)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": torch.randn(130, 4, 16)}, "q must be floats [tokens, heads, 32]"),
        ({"group": 0}, "group must be an integer of at least 1, got 0"),
        ({"group": 3}, "group must be at most 2 for 4 heads of q and 2 of pool, got 3"),
        ({"group": None}, "group must be an integer of at least 1, got None"),
        ({"q": torch.randn(130, 1, 32)}, "q must have at least the 2 heads of pool, or heads say which, got 1"),
        ({"q": None}, "q must be a tensor, got NoneType"),
        ({"q": torch.randn(130, 4, 32).to_sparse()}, "q must be a strided (dense) tensor, got layout torch.sparse_coo"),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"sink": -1}, "sink must be an integer of at least 0, got -1"),
        ({"sink": None}, "sink must be an integer of at least 0, got None"),
        ({"sink": 2**70}, f"sink must be an integer of at most {2**56}, got {2**70}"),
        ({"scale": float("nan")}, "scale must be a number, finite in float32, got nan"),
        ({"scale": "x"}, "scale must be a number, got 'x'"),
        ({"cap": -1.0}, "cap must be a number of at least 0, finite in float32, got -1.0"),
        ({"cap": None}, "cap must be a number, got None"),
        ({"lists": 3}, "lists must be a gossamer.Pattern or None, got int"),
        ({"out": [1]}, "out must be float32[130, 4, 32], got list"),
        ({"lse": torch.zeros(130, 4, device="meta")}, "lse must be on the device of q, cpu, got meta"),
        ({"heads": torch.tensor([0, 3])}, "heads[1] is 3, expected 0 <= head < 3"),
        ({"heads": torch.tensor([1, 2])}, "heads must be at least the group of 2 apart, got [1, 2]"),
        ({"out": torch.zeros(1, 4, 32)}, "out must be float32[130, 4, 32]"),
        ({"lengths": torch.tensor([100, 29])}, "lengths[1] is 29, expected at least the 30 new tokens"),
        ({"lengths": torch.tensor([129, 2**62])}, "lengths[0] is 129, expected"),
        ({"offsets": torch.tensor([0, 100, 131])}, "offsets must end at most at 130"),
        ({"offsets": torch.tensor([0, 140, 130])}, "never decrease"),
        ({"table": torch.tensor([[0, 99], [1, 0]], dtype=torch.int32)}, "table[0, 1] is 99, expected 0 <= page < 6"),
        ({"table": torch.zeros(2, 2)}, "table must be a torch.int32 tensor"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        broken(**changes)


@pytest.mark.parametrize(
    "rows, message",
    [([[1, 0], [0], [0], [0]], "ascending"), ([[0, 0], [0], [0], [0]], "ascending"), ([[0]] * 3, "4 rows"),
     ([[2], [0], [0], [0]], "their own request")],
)  # fmt: skip
def test_broken_lists(rows, message):
    pool, batch, _, _ = filled([100, 30], 2, 32)
    newest = Batch(torch.arange(3), batch.lengths, batch.table)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    lists = gs.Pattern(
        offsets, torch.tensor([page for row in rows for page in row], dtype=torch.int32), (len(rows), 9), (1, 1)
    )
    with pytest.raises(ValueError, match=message):
        page_attention(torch.randn(2, 4, 32), pool, newest, group=2, lists=lists)

"""Pools of pages: what is written and how it is summarized, to the last bit; what a pool is, and cannot be."""

import copy
import itertools
import pickle

import pytest
import torch
from paged_cases import STORED, filled

from gossamer.ops import Batch, PagePool, page_append, page_attention, page_choose, page_scores
from gossamer.ops.paged.pool import page_bytes
from gossamer.testing import assert_same_bits, gamma


@pytest.mark.parametrize("stored", STORED)
def test_what_is_written(isa, stored):
    """The kernel's pages are the reference's, to the last bit; mean and variance but for the order of their sums."""
    lengths = [1, 64, 100, 7]
    torch.manual_seed(3)
    made = [PagePool.allocate(12, 2, 32, stored=stored, sketched=True) for _ in range(2)]
    batch = Batch.of(lengths, lengths, [[5], [0], [7, 2], [11]])
    keys, values = torch.randn(172, 2, 32), 30 * torch.randn(172, 2, 32)
    values[3] = 0.7  # a token without a range
    values[4, 0, 1] = torch.nan
    for pool, backend in zip(made, ("cpu", "reference"), strict=True):
        for each in pool.tensors:
            each.zero_()
        page_append(keys, values, pool, batch, backend=backend)
    ours, oracle = made
    for name in ("keys", "values", "key_scales", "value_scales", "extremes", "sketches", "sketch_scales"):
        got, exact = getattr(ours, name), getattr(oracle, name)
        if got is not None and got.is_floating_point():
            assert torch.equal(got.isnan(), exact.isnan())
            got, exact = got.nan_to_num(), exact.nan_to_num()
        if got is not None:
            assert_same_bits(got, exact)
    torch.testing.assert_close(ours.moments.float(), oracle.moments.float(), rtol=2**-7, atol=2**-18)


def test_codes_are_within_half_a_scale():
    pool, batch, _, values = filled([64], 1, 32, stored="int8")
    page = int(batch.table[0, 0])
    scale, zero = pool.value_scales[page, 0].float()
    back = pool.values[page, 0].float() * scale[:, None] + zero[:, None]
    assert ((back - values[:, 0]).abs() <= scale[:, None] / 2 + 1e-6).all()


@pytest.mark.parametrize("stored", STORED)
def test_no_key_of_a_page_scores_above_its_extremes(isa, stored):
    """And where all keys of a page are one, none is below."""
    torch.manual_seed(2)
    pool, batch, keys, _ = filled([64 * 40 + 5], 2, 64, stored=stored)
    q = 3 * torch.randn(1, 6, 64)
    scores = page_scores(q, pool, batch, by="extremes", group=3)
    read = torch.full((1, 6, 41), -torch.inf)
    for p in range(41):
        page = int(batch.table[0, p])
        x = pool.read_keys(torch.tensor([page]))[0].double()
        x = x[:, :5] if p == 40 else x
        read[0, :, p] = torch.einsum("hgd,htd->hgt", q[0].view(2, 3, 64).double(), x).amax(-1).flatten() / 8
    slack = gamma(130, torch.float32) * (q.abs().amax() * keys.abs().amax() * 64 / 8)
    assert (scores >= read - slack).all()


def test_moments_rank_as_the_mass_of_a_page_does():
    """The logarithm of the mean of exp(q . k), for keys that are normal, better than the upper bound does."""
    torch.manual_seed(0)
    n, width = 200, 64
    centre, spread = torch.randn(n, 1, width) / 2, torch.rand(n, 1, 1) + 0.5
    keys = (centre + spread * torch.randn(n, 64, width)).view(-1, 1, width)
    pool = PagePool.allocate(n, 1, width)
    batch = Batch.of([n * 64], [n * 64], [list(range(n))])
    page_append(keys, keys, pool, batch)
    q = torch.randn(1, 1, width)
    mass = torch.logsumexp((keys.view(n, 64, width) @ q[0, 0]) / 8, 1)

    def agreement(by):
        scores = page_scores(q, pool, batch, by=by)[0, 0]
        return len({*scores.topk(20).indices.tolist()} & {*mass.topk(20).indices.tolist()})

    assert agreement("moments") >= 15
    assert agreement("moments") > agreement("extremes")


@pytest.mark.parametrize(
    ("width", "group", "stored"),
    [
        *((width, 1, "float32") for width in (16, 48, 64, 80, 128, 256)), (64, 3, "bfloat16"), (128, 20, "float32"),
        *((width, group, "int8") for width, group in ((16, 20), (80, 3), (256, 1))), (32, 3, "int4"), (96, 20, "int4"),
    ],
)  # fmt: skip
def test_scores_by_keys_are_the_products_but_for_their_rounding(isa, width, group, stored):
    """Half a scale of each coordinate of a key, and of each of a query; codes of keys need no copy."""
    torch.manual_seed(1)
    length = 64 * 9 + 37
    pool, batch, keys, _ = filled([length, 3], 2, width, stored=stored, sketched=stored[0] != "i")
    batch = Batch(torch.arange(3), batch.lengths, batch.table)
    q = torch.randn(2, 2 * group, width)
    q[0, 0] = 0
    scores = page_scores(q, pool, batch, by="keys", group=group, scale=1.0)
    assert_same_bits(scores, page_scores(q, pool, batch, by="keys", group=group, scale=1.0, backend="reference"))
    assert scores[0, 0].abs().max() == 0 and scores[1, :, 1:].max() == -torch.inf
    exact = torch.einsum("hgd,thd->hgt", q[0].view(2, group, width), keys[:length])
    exact = torch.nn.functional.pad(exact, (0, 640 - length), value=-torch.inf).view(2 * group, 10, 64).amax(2)
    step = (keys.amax(2) - keys.amin(2)).max() / 15 * 1.01
    slack = step / 2 * q[0].abs().sum(1) + q[0].abs().amax(1) / 254 * keys.abs().sum(2).max() * 1.1
    assert ((scores[0] - exact).abs() <= slack[:, None]).all()
    assert (scores[0, 1:] - exact[1:]).abs().mean() < slack.mean() / 4


def test_keys_that_are_not_numbers_are_passed_over():
    pool, batch, keys, values = filled([100], 1, 32, sketched=True)
    token = Batch(torch.tensor([0, 1]), batch.lengths, batch.table)
    q = torch.randn(1, 1, 32)
    keys[70, 0, 5] = torch.nan
    page_append(keys, values, pool, batch)
    assert page_scores(q, pool, token, by="keys").isfinite().all()
    q[0, 0, 3] = torch.nan
    for backend in ("cpu", "reference"):
        assert (page_scores(q, pool, token, by="keys", backend=backend) == -torch.inf).all()


@pytest.mark.parametrize("together", [True, False])
def test_what_is_chosen_is_what_sorting_would_choose(isa, together):
    """Scores of all sizes and signs, many of them equal, NaN and infinities among them; the first and the newest."""
    torch.manual_seed(0)
    for pages, count in ((1, 1), (3, 2), (40, 7), (40, 40), (1000, 64)):
        lengths = torch.tensor([pages * 64, pages * 64 - 63])
        batch = Batch(torch.arange(3), lengths, torch.zeros(2, pages, dtype=torch.int32))
        for scores in (
            torch.randn(2, 6, pages) * 10 ** torch.randn(2, 6, pages), torch.randint(-2, 3, (2, 6, pages)).float(),
            torch.full((2, 6, pages), -torch.inf), torch.full((2, 6, pages), torch.nan), torch.zeros(2, 6, pages) * -1,
        ):  # fmt: skip
            scores[0, 0, ::7], scores[1, 2, ::5] = torch.inf, torch.nan
            got = page_choose(scores, batch, count, group=3, together=together)
            assert got.shape == (2, 2 if together else 6, count)
            assert torch.equal(got, page_choose(scores, batch, count, group=3, together=together, backend="reference"))
            assert (got[..., 0] == 0).all() and (count == 1 or (got[..., -1] == pages - 1).all())
            alone = page_choose(scores, batch, 1, group=3, together=together)
            assert not alone.any()  # the first page and no other


def test_choices_that_cannot_be_are_named():
    scores, batch = torch.zeros(1, 4, 5), Batch.of([1], [130], [[0, 1, 2]])
    for given, said in (
        ({"count": 4}, r"lengths\[0\] is 130, expected 4 to 5 pages of 64 tokens"),
        ({"count": 0}, "count must be an integer from 1 to the 5 pages of scores, got 0"),
        ({"count": 6}, "got 6"),
        ({"count": 2, "page": 16}, r"lengths\[0\] is 130"),
        ({"count": 2, "heads": torch.tensor([4])}, r"heads\[0\] is 4, expected 0 <= head < 4"),
        ({"count": 2, "group": 5}, "group must be an integer from 1 to the 4 query heads, got 5"),
        ({"count": 2, "group": 0}, "group must be an integer from 1 to the 4 query heads, got 0"),
        ({"count": 2, "group": 2.5}, "got 2.5"),
        ({"count": True}, "count must be an integer from 1 to the 5 pages of scores, got True"),
        ({"count": 2, "page": 0}, "page must be an integer from 1 to the 256 tokens of a page, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            page_choose(scores, batch, **given)
    with pytest.raises(TypeError, match="together must be a bool, got 'no'"):
        page_choose(scores, batch, 2, together="no")
    with pytest.raises(ValueError, match="heads must be on the device of scores, cpu, got meta"):
        page_choose(scores, batch, 2, heads=torch.tensor([0], device="meta"))
    for heads in ([0], torch.tensor([0.0])):
        with pytest.raises(TypeError, match="heads must be int64 of one dimension, or None, got"):
            page_choose(scores, batch, 2, heads=heads)
    with pytest.raises(TypeError, match=r"scores must be a torch\.Tensor, got list"):
        page_choose([[0.0]], batch, 2)
    assert page_choose(scores[:0], Batch.of([], [], []), 2, group=2).shape == (0, 2, 2)
    with pytest.raises(ValueError, match=r"scores must be float32 \[1, query heads, pages\], got torch.float64"):
        page_choose(scores.double(), batch, 2)
    with pytest.raises(ValueError, match="pool keeps no sketches; expected one allocated with sketched=True"):
        page_scores(torch.zeros(1, 1, 16), PagePool.allocate(1, 1, 16), Batch.of([1], [1], [[0]]), by="keys")


def test_what_appending_and_scoring_refuse_is_named_as_it_was_passed():
    pool, batch, keys, values = filled([3], 2, 32)
    before = [each.clone() for each in pool.tensors]
    for given, said in (
        ({"keys": [1]}, "keys must be a tensor, got list"),
        ({"values": values[:2]}, r"values must have the shape of keys, \[3, 2, 32\], got \[2, 2, 32\]"),
        ({"keys": keys[:, :1], "values": values[:, :1]}, "keys must have at least the 2 heads of pool, .* got 1"),
        ({"heads": torch.tensor([0, 2])}, r"heads\[1\] is 2, expected 0 <= head < 2"),
        ({"keys": keys.to_sparse()}, "keys must be a strided"),
        ({"heads": torch.tensor([0, 1], device="meta")}, "heads must be on the device of keys, cpu, got meta"),
        ({"pool": None}, "pool must be a gossamer.ops.PagePool, got NoneType"),
        ({"batch": None}, "batch must be a gossamer.ops.Batch, got NoneType"),
    ):
        with pytest.raises((TypeError, ValueError), match="^" + said):
            page_append(**{"keys": keys, "values": values, "pool": pool, "batch": batch} | given)
    for now, was in zip(pool.tensors, before, strict=True):
        assert_same_bits(now, was)
    q, token = torch.randn(1, 4, 32), Batch(torch.tensor([0, 1]), batch.lengths, batch.table)
    for given, said in (
        ({"q": q[0]}, r"q must be floats \[requests, heads, 32\], got torch.float32\[4, 32\]"),
        ({"q": torch.cat([q, q])}, r"q must have a row for each of 1 requests, got torch.float32\[2, 4, 32\]"),
        ({"group": 5}, "group must be at most 2 for 4 heads of q and 2 of pool, got 5"),
        ({"scale": "x"}, "scale must be a number, got 'x'"),
    ):
        with pytest.raises((TypeError, ValueError), match="^" + said):
            page_scores(**{"q": q, "pool": pool, "batch": token} | given)


def test_nothing_is_left_of_who_had_a_page_before():
    pool = PagePool.allocate(1, 1, 32)
    for scale in (1e4, 1.0):
        torch.manual_seed(0)
        keys = scale * torch.randn(20, 1, 32)
        for n in range(1, 21):
            page_append(keys[n - 1 : n], keys[n - 1 : n], pool, Batch.of([1], [n], [[0]]))
    assert_same_bits(pool.extremes[0, 0, 0, 0], keys[:16, 0].amax(0).bfloat16().where(
        keys[:16, 0].amax(0).bfloat16().float() >= keys[:16, 0].amax(0), pool.extremes[0, 0, 0, 0]))  # fmt: skip
    assert (pool.extremes[0, 0, 1, 0].float() >= keys[16:, 0].amax(0)).all()
    assert (pool.extremes[0, 0, 1, 0].float() <= keys[16:, 0].amax(0) * 1.01 + 0.01).all()


def test_pools_are_copied_and_serve_in_and_after_inference_mode():
    torch.manual_seed(0)
    keys, q = torch.randn(70, 2, 32), torch.randn(70, 4, 32)

    def run(pool, batch, n=70):
        page_append(keys[:n], keys[:n], pool, batch)
        return page_attention(q[:n], pool, batch, group=2)

    with torch.inference_mode():
        pool, batch = PagePool.allocate(2, 2, 32), Batch.of([70], [70], [[1, 0]])
        expected = run(pool, batch)
    for other in (pool, copy.deepcopy(PagePool.allocate(2, 2, 32)), pickle.loads(pickle.dumps(pool))):
        assert_same_bits(run(other, batch), expected.clone())
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(run(PagePool.allocate(2, 2, 32), batch), expected.clone())
    assert run(pool, Batch.of([], [], []), 0).shape == (0, 4, 32)
    assert run(pool, Batch.of([0, 3], [5, 3], [[0], [1]]), 3).shape == (3, 4, 32)  # one without new tokens


def test_bytes_are_what_the_formula_says():
    for stored, heads in itertools.product(STORED, (0, 3)):
        for sketched in (False, True):
            pool = PagePool.allocate(5, heads, 64, stored=stored, sketched=sketched)
            assert pool.nbytes == 5 * page_bytes(heads, 64, stored, sketched=sketched)
    # A head of 128 with a scale, a zero and both summaries for a token, over two numbers of 16 bits.
    assert page_bytes(1, 128, "int8") / (64 * 2 * 128 * 2) == 0.59375


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"width": 24}, "width must be a multiple of 16"),
        ({"width": 48, "stored": "int4"}, "width must be a multiple of 32"),
        ({"page": 48}, "page must be a multiple of 32"),
        ({"extremes": 48}, "extremes must divide"),
        ({"stored": "fp8"}, "stored must be one of"),
        ({"count": -1}, "count must be an integer of at least 0, got -1"),
        ({"sketched": "yes"}, "sketched must be True or False, got 'yes'"),
    ],
)
def test_pools_that_there_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        PagePool.allocate(**({"count": 1, "heads": 1, "width": 32} | arguments))


def test_what_asks_for_a_gradient_is_refused_and_versions_count():
    pool, batch, _, _ = filled([3], 1, 32)
    before = pool.keys._version
    page_append(torch.zeros(3, 1, 32), torch.zeros(3, 1, 32), pool, batch)
    assert pool.keys._version > before
    with pytest.raises(RuntimeError, match="page_attention writes out"):
        page_attention(torch.randn(3, 1, 32, requires_grad=True), pool, batch)


def test_pages_made_in_inference_mode_are_written_by_anybody():
    with torch.inference_mode():
        pool = PagePool.allocate(2, 1, 32, stored="int8")
    assert not any(each.is_inference() for each in pool.tensors)
    pool.keys[0] = pool.keys[1]

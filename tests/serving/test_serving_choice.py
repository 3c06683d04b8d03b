"""What is read: heads that stream, pages that are chosen, and how far the result can be from the dense one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.serving.attending.attend import LayerAttention
from gossamer.serving.geometry import Geometry, LayerShape
from gossamer.serving.heads import HeadPattern, spread
from gossamer.serving.paging.store import Store, views
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.tally import Tally

HEADS, GROUP, WIDTH = 2, 2, 32


class Text:
    """A request of one layer, whose keys and values are kept beside the pages to compute attention again from."""

    def __init__(self, sparsity: Sparsity, pages: int = 40, cap: float = 0.0) -> None:
        geometry = Geometry((LayerShape(HEADS, GROUP, WIDTH, None),), None)
        parts = sparsity.parts(geometry)
        self.store = Store(
            geometry, sparsity, sparsity.stored_for(torch.float32), parts, dict.fromkeys(views(parts), pages)
        )
        self.layer = LayerAttention(self.store, 0, Tally(), cap=cap)
        self.request, self.cap = self.store.open(), cap
        self.keys, self.values = torch.zeros(0, HEADS, WIDTH), torch.zeros(0, HEADS, WIDTH)

    def add(self, count: int, q: Tensor | None = None, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention of new tokens: what the layer says, and the dense one."""
        q = torch.randn(count, HEADS * GROUP, WIDTH) if q is None else q
        keys = torch.randn(count, HEADS, WIDTH) if keys is None else keys
        values = torch.randn(count, HEADS, WIDTH)
        self.keys, self.values = torch.cat([self.keys, keys]), torch.cat([self.values, values])
        step = self.store.extend([self.request], [count], decoding=int(count == 1))
        out = self.layer(q, keys, values, step)
        self.store.trim([self.request])
        return out, self.dense(q)

    def dense(self, q: Tensor, seen: Tensor | None = None) -> Tensor:
        scores = torch.einsum("thgd,khd->thgk", q.view(-1, HEADS, GROUP, WIDTH), self.keys).double() * WIDTH**-0.5
        if self.cap:
            scores = self.cap * torch.tanh(scores / self.cap)
        ahead = torch.arange(len(self.keys)) > torch.arange(len(self.keys) - len(q), len(self.keys))[:, None]
        scores = scores.masked_fill(ahead[:, None, None], -math.inf)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None, None], -math.inf)
        out = torch.einsum("thgk,khd->thgd", scores.softmax(-1), self.values.double())
        return out.flatten(1, 2).float()


@pytest.mark.parametrize("prompt", [1, 15, 63, 64, 65, 127, 128, 129, 255, 257, 383, 447, 449, 511, 513, 1000])
def test_streaming_heads_decode_as_they_read_a_prompt(prompt):
    """Each token sees its sinks and its window, across the borders of pages, as a row of a mask does."""
    text = Text(Sparsity(static=1.0, sink=70, local=130))
    counts = [prompt] + [1] * 70
    for count in counts:
        q = torch.randn(count, HEADS * GROUP, WIDTH)
        out, _ = text.add(count, q)
        at, key = torch.arange(len(text.keys) - count, len(text.keys))[:, None], torch.arange(len(text.keys))
        torch.testing.assert_close(out, text.dense(q, (key < 70) | (key > at - 130)), atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_a_window_over_two_thousand_steps():
    text = Text(Sparsity(static=1.0, sink=64, local=64), pages=8)
    for _ in range(2000):
        q = torch.randn(1, HEADS * GROUP, WIDTH)
        out, _ = text.add(1, q)
        key = torch.arange(len(text.keys))
        torch.testing.assert_close(
            out, text.dense(q, ((key < 64) | (key >= len(key) - 64))[None]), atol=2e-5, rtol=2e-5
        )


def test_window_and_sinks_of_nothing_is_the_value_of_the_token():
    text = Text(Sparsity(static=1.0, sink=0, local=1))
    out, _ = text.add(100)
    assert torch.equal(out, text.values.repeat_interleave(GROUP, 1))


def test_only_what_each_head_may_see():
    """Half of the heads stream; the others are dense, to the bit, whoever streams beside them."""
    gates = HeadPattern(torch.tensor([[0.1, 0.9]], dtype=torch.float64))
    one, other = Text(Sparsity(static=0.5, pattern=gates, sink=32, local=32)), Text(Sparsity())
    q, keys, values = torch.randn(300, 4, WIDTH), torch.randn(300, HEADS, WIDTH), torch.randn(300, HEADS, WIDTH)
    some, every = (text.layer(q, keys, values, text.store.extend([text.request], [300])) for text in (one, other))
    assert torch.equal(some[:, 2:], every[:, 2:])
    assert (some[200:, :2] - every[200:, :2]).abs().amax() > 0.1


@pytest.mark.parametrize("interval", [1, 4, 16])
def test_the_newest_tokens_are_always_read(interval):
    """A key that matters more than all others is seen in every one of the 64 steps after it, wherever pages begin."""
    text = Text(Sparsity(token_budget=192, interval=interval))
    text.add(700)
    strong = torch.full((1, HEADS, WIDTH), 4.0)
    for _ in range(130):
        q = torch.full((1, HEADS * GROUP, WIDTH), 4.0)
        out, _ = text.add(1, q, strong)
        # The strong keys share the softmax. Up to 128 of them are in the newest pages, which a query always wants.
        count = min(len(text.keys) - 700, 64)
        newest = text.values[-count:].mean(0).repeat_interleave(GROUP, 0)
        if len(text.keys) - 700 <= 64:
            torch.testing.assert_close(out[0], newest, atol=1e-4, rtol=1e-4)


def test_pages_are_chosen_by_score_and_reread_until_they_are_stale():
    """One page holds what the query looks for; it is found, wherever it is, with the first and the newest."""
    text = Text(Sparsity(token_budget=192, interval=4))
    keys = torch.randn(640, HEADS, WIDTH) * 0.1
    keys[333] = 3.0
    text.add(640, keys=keys)
    q = torch.full((1, HEADS * GROUP, WIDTH), 3.0)
    for step in range(8):
        out, dense = text.add(1, q, torch.zeros(1, HEADS, WIDTH))
        chosen = text.request.chosen[0, 0]
        assert chosen.pages.tolist() == [[0, 5, 10]] * HEADS
        assert chosen.length == 641 + step // 4 * 4
        torch.testing.assert_close(out, dense, atol=1e-4, rtol=1e-4)
    text.store.crop(text.request, 1)
    text.keys, text.values = text.keys[:-1], text.values[:-1]
    text.add(1, q, torch.zeros(1, HEADS, WIDTH))
    assert text.request.chosen[0, 0].length == 648  # what was chosen before the crop is stale


def test_heads_of_a_group_choose_together_or_each_for_itself():
    keys = torch.zeros(640, HEADS, WIDTH)
    keys[333, :, 0], keys[140, :, 1] = 30.0, 30.0
    q = torch.zeros(1, HEADS * GROUP, WIDTH)
    q[0, 0::2, 0], q[0, 1::2, 1] = 3.0, 3.0  # the two heads of a group look for different keys
    for per, pages in (("q_head", [[0, 5, 10], [0, 2, 10]]), ("kv_group", [[0, 2, 5, 10]])):
        text = Text(Sparsity(token_budget=192 if per == "q_head" else 256, select_per=per))
        text.add(640, keys=keys)
        out, dense = text.add(1, q, torch.zeros(1, HEADS, WIDTH))
        assert text.request.chosen[0, 0].pages.tolist() == pages * HEADS
        torch.testing.assert_close(out, dense, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("stored", ["float32", "int8", "int4"])
@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_the_error_stays_below_its_bound(stored, cap):
    """Certificates over many steps, in texts of peaks and of noise; some are far from vacuous."""
    tight = 0
    for peak in (1.0, 6.0):
        text = Text(Sparsity(token_budget=256, certify=True, interval=1, stretch=16, stored=stored), cap=cap)
        keys = torch.randn(750, HEADS, WIDTH) * 0.2
        keys[::350] += peak
        text.add(750, keys=keys)
        for _ in range(10):
            q = torch.randn(1, HEADS * GROUP, WIDTH) * 0.3 + peak
            before = text.layer.tally.sum_of_bounds
            text.layer.tally.worst_bound = 0.0
            out, dense = text.add(1, q, torch.randn(1, HEADS, WIDTH) * 0.2)
            longest = text.values.norm(dim=-1).max()
            error = (out - dense).view(-1, WIDTH).norm(dim=1).max() / longest
            slack = {"float32": 1e-4, "int8": 0.03, "int4": 0.5}[stored]  # of what is stored, not of what is skipped
            assert error <= text.layer.tally.worst_bound + slack
            tight += text.layer.tally.sum_of_bounds - before < 0.1
    assert tight > 5 or cap


def test_a_limit_widens_and_at_last_reads_all():
    for limit, dense_reads in ((1e-9, True), (2.0, False)):
        text = Text(Sparsity(token_budget=192, max_error=limit, interval=1))
        text.add(1600)
        for _ in range(5):
            out, dense = text.add(1)
        tally = text.layer.tally
        assert (tally.heads_dense > 0) == dense_reads
        assert tally.worst_kept <= limit
        if dense_reads:
            torch.testing.assert_close(out, dense, atol=2e-6, rtol=2e-6)


def test_gates_from_files(tmp_path):
    gates = HeadPattern(torch.rand(3, 4, dtype=torch.float64))
    gates.save(tmp_path / "full_attention_heads.tsv")
    for path in (tmp_path, tmp_path / "full_attention_heads.tsv", str(tmp_path)):
        assert torch.equal(HeadPattern.load(path).gates, gates.gates)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "full_attention_heads.tsv", delimiter="\t"), gates.gates)
    for content, said in (
        ("0.5\tnan\n", "nan for head 1 of layer 0"),
        ("0.5 0.5\n0.5\n", "rows of one length"),
        ("", "got nothing"),
        ("0.5 x\n", "could not convert"),
    ):
        (tmp_path / "bad.tsv").write_text(content)
        with pytest.raises(ValueError, match=said):
            HeadPattern.load(tmp_path / "bad.tsv")
    with pytest.raises((FileNotFoundError, ValueError)):
        HeadPattern.load(tmp_path / "none.tsv")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_the_split_is_that_of_the_published_rule(share):
    """Heads at or above the quantile of all gates are dense; of ties the earlier stream, always the same."""
    gates = torch.rand(7, 5, dtype=torch.float64)
    limit = {0.0: -1.0, 1.0: 2.0}.get(share, float(np.quantile(gates, share)))
    assert torch.equal(HeadPattern(gates).streaming(share), gates < limit)
    tied = HeadPattern(torch.ones(2, 4, dtype=torch.float64))
    assert tied.streaming(0.5).flatten().tolist() == [True] * 4 + [False] * 4
    assert spread(2, 4).streaming(0.5).tolist() == [[False, False, True, True]] * 2


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"static": 1.5}, r"static must be a share from 0 to 1, got 1\.5"),
        ({"static": float("nan")}, "static must be a share"),
        ({"local": 0}, "local must be an integer of at least 1, got 0"),
        ({"token_budget": 128}, "at least 192"),
        ({"token_budget": 4000}, "multiple of the page of 64 tokens"),
        ({"interval": 0}, "interval must be"),
        ({"score": "mean"}, "score must be one of keys, extremes, moments, got 'mean'"),
        ({"stored": "int2"}, "stored must be one of"),
        ({"select_per": "head"}, "select_per must be one of"),
        ({"max_error": -1.0, "token_budget": 192}, "max_error must be a number above 0"),
        ({"max_error": 0.1}, "need token_budget"),
        ({"certify": True, "token_budget": 192, "select_per": "q_head"}, "got select_per='q_head'"),
        ({"page": 48}, "page must be a multiple of 32"),
        ({"stretch": 24}, "stretch must divide"),
    ],
)
def test_numbers_out_of_range_are_named(attributes, said):
    with pytest.raises(ValueError, match=said):
        Sparsity(**attributes)


def test_a_pattern_of_another_model_is_refused():
    geometry = Geometry((LayerShape(HEADS, GROUP, WIDTH, None),), None)
    with pytest.raises(ValueError, match=r"pattern has \[3, 4\] gates, expected \[1, 2\]"):
        Sparsity(static=0.5, pattern=HeadPattern(torch.zeros(3, 4, dtype=torch.float64))).parts(geometry)


def test_without_a_pattern_it_is_said(caplog):
    geometry = Geometry((LayerShape(HEADS, GROUP, WIDTH, None),), None)
    gs.serving.Sparsity(static=0.5).parts(geometry)
    assert "static=0.5 without a pattern" in caplog.text


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_the_bound_is_the_missing_share_where_keys_are_alike(cap):
    """With equal keys in each page nothing is lost in bounding them: twice the softmax that is missing, no less."""
    text = Text(Sparsity(token_budget=192, certify=True, interval=1), cap=cap)
    keys = torch.randn(10, 1, WIDTH).repeat_interleave(64, 0).expand(-1, HEADS, -1) * 0.5
    text.add(640, keys=keys.contiguous())
    q = torch.randn(1, HEADS, WIDTH).repeat_interleave(GROUP, 1)
    text.add(1, q, torch.zeros(1, HEADS, WIDTH))
    weights = torch.einsum("hgd,khd->hgk", q.view(HEADS, GROUP, WIDTH), text.keys) * WIDTH**-0.5
    weights = (cap * torch.tanh(weights / cap) if cap else weights).softmax(-1)
    read = torch.zeros(HEADS, 11, dtype=torch.bool).scatter_(1, text.request.chosen[0, 0].pages.long(), True)
    missing = (weights * ~read.repeat_interleave(64, 1)[:, None, :641]).sum(2).amax()
    assert 2 * missing <= text.layer.tally.worst_bound <= 2.05 * missing


def test_heads_within_the_limit_are_left_alone():
    """One key head has a peak that is read, the other has none: only that one reads more."""
    text = Text(Sparsity(token_budget=192, max_error=0.2, interval=1))
    keys = torch.randn(1600, HEADS, WIDTH) * 0.3
    keys[5, 0] = 9.0
    text.add(1600, keys=keys)
    q = torch.randn(1, HEADS * GROUP, WIDTH)
    q[:, :GROUP] = 3.0
    out, dense = text.add(1, q, torch.zeros(1, HEADS, WIDTH))
    tally = text.layer.tally
    assert tally.heads_bounded == 2 and tally.heads_dense == 1 and tally.worst_kept <= 0.2
    torch.testing.assert_close(out, dense, atol=1e-4, rtol=1e-4)


def test_a_group_reads_what_one_of_it_wants_most():
    keys = torch.zeros(640, HEADS, WIDTH)
    keys[333, :, 0], keys[140, :, 1], keys[140, :, 0] = 30.0, 29.0, 10.0
    q = torch.zeros(1, HEADS * GROUP, WIDTH)
    q[0, 0::2, 0], q[0, 1::2, 1] = 3.0, 3.0  # on average page 2 is wanted more, but nobody wants it most
    text = Text(Sparsity(token_budget=192))
    text.add(640, keys=keys)
    text.add(1, q, torch.zeros(1, HEADS, WIDTH))
    assert text.request.chosen[0, 0].pages.tolist() == [[0, 5, 10]] * HEADS

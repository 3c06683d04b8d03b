"""Attention over any mask is torch's own, whatever is left out; what is left out is not read; the choice; graphs."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.kernels.cpu import masked_attention as cpu
from gossamer.ops import MaskSite, masked_attention
from gossamer.ops.attention import masked
from gossamer.testing import assert_no_recompile, assert_same_bits

LOW = torch.finfo(torch.float32).min
B, H, HK = 2, 4, 2


def windows(rows, cols, width=9, everywhere=3):
    """A sliding window, and a few keys and queries that see everything."""
    mask = (torch.arange(rows)[:, None] - torch.arange(cols)).abs() <= width
    mask[torch.randperm(rows)[:everywhere]] = True
    mask[:, torch.randperm(cols)[:everywhere]] = True
    return mask


def documents(rows, cols):
    start = torch.randint(2, (cols,)).cumsum(0) // 4
    return (start[:rows, None] == start) & torch.ones(rows, cols, dtype=torch.bool).tril()


MASKS = {
    "windows": lambda s, t: windows(s, t),
    "windows, low": lambda s, t: torch.zeros(s, t).masked_fill(~windows(s, t), LOW),
    "documents": documents,
    "padding": lambda s, t: torch.rand(B, 1, 1, t) < 0.5,
    "random, of each head": lambda s, t: torch.rand(B, H, s, t) < 0.05,
    "blocks, expanded": lambda s, t: (
        (torch.rand(1, 1, -(-s // 16), -(-t // 16)) < 0.3)
        .repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :s, :t].expand(B, H, s, t)
    ),
    "numbers": lambda s, t: torch.randn(1, H, s, t).where(torch.rand(1, H, s, t) < 0.2, -torch.inf),
    "columns apart": lambda s, t: windows(t, s).t(),
    "rows that see nothing": lambda s, t: windows(s, t, 5, 0) & (torch.arange(s) % 5 > 1)[:, None],
    "rows that see nothing, low": lambda s, t: torch.zeros(s, t).masked_fill(
        ~(windows(s, t, 5, 0) & (torch.arange(s) % 5 > 1)[:, None]), LOW
    ),
    "nothing": lambda s, t: torch.zeros(s, t, dtype=torch.bool),
    "everything": lambda s, t: torch.ones(1, 1, s, t, dtype=torch.bool),
    "everything, added": lambda s, t: torch.zeros(t).expand(B, 1, s, t),
    "nearly everything": lambda s, t: (torch.arange(s * t) != s * t // 3).view(s, t),
}  # fmt: skip
SIZES = [(300, 300), (1, 1), (70, 333), (57, 64), (0, 5)]


def operands(rows, cols, width=16, value_width=16, dtype=torch.float32):
    sizes = ((H, rows, width), (HK, cols, width), (HK, cols, value_width))
    return [torch.randn(B, n, heads, d, dtype=dtype).transpose(1, 2).requires_grad_() for heads, n, d in sizes]


def assert_near(actual, exact, largest, score):
    """Scores up to `score` in size are off by so many roundings, and what they weigh is at most `largest`."""
    bound = (8 + 4 * score) * torch.finfo(actual.dtype).eps * largest
    assert actual.shape == exact.shape and bool(((actual.double() - exact).abs() <= bound).all())


def compare(name, rows, cols, dtype, backend):
    mask = MASKS[name](rows, cols)
    q, k, v = operands(rows, cols, dtype=dtype)
    weights = torch.randn(B, H, rows, 16, dtype=dtype)
    y = masked_attention(q, k, v, mask, backend=backend)
    ours = torch.autograd.grad((y * weights).sum(), (q, k, v))
    assert y.dtype == dtype and y.transpose(1, 2).is_contiguous()
    wide = mask if mask.dtype == torch.bool else mask.double()
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=wide, enable_gqa=True)
    if name == "rows that see nothing, low":  # the scores themselves are lost beside such numbers
        lost = (mask == LOW).all(1)
        exact = exact.where(~lost[:, None], v.double().mean(2, keepdim=True).repeat_interleave(H // HK, 1))
    theirs = torch.autograd.grad((exact * weights).sum(), (q, k, v), allow_unused=True)
    if not y.numel():
        return
    q_most, k_most, v_most, most = (float(x.detach().abs().max()) for x in (q, k, v, weights))
    added = float(mask.where(mask > -1e30, 0).abs().max()) if mask.dtype != torch.bool else 0.0
    score = 4 * q_most * k_most + added
    assert_near(y, exact, v_most, score)
    if name == "rows that see nothing, low":
        return
    by_score, shared = 2 * 16 * most * v_most / 4, rows * H / HK
    for mine, other, largest in zip(
        ours, theirs, (by_score * k_most, shared * by_score * q_most, shared * most), strict=True
    ):
        assert_near(mine, other.double(), largest, score)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", ["cpu", "reference", None])
def test_is_torchs_attention(name, backend, monkeypatch):
    monkeypatch.setattr(masked, "LEAST_SCORES", 0)
    for rows, cols in SIZES:
        compare(name, rows, cols, torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_numbers(dtype):
    for backend in ("cpu", None):
        compare("windows", 150, 150, dtype, backend)


def test_rows_that_are_low_are_moved_as_torch_moves_them():
    mask = MASKS["rows that see nothing, low"](64, 64)
    given = operands(64, 64)
    y = masked_attention(*given, mask, backend="cpu")
    theirs = scaled_dot_product_attention(*given, attn_mask=mask, enable_gqa=True)
    weights = torch.randn_like(y)
    found, expected = (torch.autograd.grad((each * weights).sum(), given) for each in (y, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_first_and_second_order():
    mask = windows(12, 12, 2, 1)
    given = operands(12, 12, 3, 3, torch.float64)
    for backend in ("reference", "cpu"):
        attend = partial(masked_attention, mask=mask, backend=backend)
        assert torch.autograd.gradcheck(attend, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(attend, given, fast_mode=True)


def test_another_width_of_values_and_a_scale():
    q, k, v = operands(90, 90, 8, 24)
    mask = windows(90, 90)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7, enable_gqa=True)
    for backend in ("cpu", None):
        torch.testing.assert_close(masked_attention(q, k, v, mask, scale=0.7, backend=backend), expected)


@pytest.mark.parametrize("how", [torch.bool, torch.float32], ids=str)
def test_only_what_is_seen_is_multiplied(how):
    """Of a window with keys that all see, and queries that see all: those make blocks of their own."""
    rows, width, everywhere = 1024, 64, 16
    mask = windows(rows, rows, width, everywhere)
    given = mask if how == torch.bool else torch.zeros(rows, rows).masked_fill(~mask, -torch.inf)
    q = torch.zeros(1, 4, rows, 8)
    _, share = cpu.find_seen(q, q, given[None, None].expand(1, 4, -1, -1), 1.0)
    least = int(mask.sum()) / rows**2
    block = 56
    assert least < share < (2 * width + block + 2 * everywhere + 2) / rows + everywhere / rows


def test_what_no_query_of_a_block_sees_is_not_read():
    rows = 256
    mask = torch.eye(8, dtype=torch.bool).repeat_interleave(32, 0).repeat_interleave(32, 1)
    mask[:128, 224:] = mask[128:, :32] = False
    mask[224:] = False
    q, k, v = operands(rows, rows)
    expected = masked_attention(q, k, v, mask, backend="cpu")
    spoiled = [x.detach().clone() for x in (k, v)]
    for x in spoiled:
        x[:, :, 224:] = torch.nan
    assert_same_bits(masked_attention(q, *spoiled, mask, backend="cpu"), expected)


def test_nan_of_what_is_seen_is_not_lost():
    mask = torch.eye(70, dtype=torch.bool)
    q, k, v = (x.detach() for x in operands(70, 70))
    k[0, 0, 3] = torch.nan
    y = masked_attention(q, k, v, mask, backend="cpu")
    assert y[0, :2, 3].isnan().all() and y.isnan().sum() == 2 * 16


def test_bits_do_not_depend_on_the_team():
    mask, given = windows(500, 500, 40, 5), operands(500, 500)
    first = None
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = masked_attention(*given, mask, backend="cpu")
        found = [y, *torch.autograd.grad(y.sum(), given)]
        for mine, before in zip(found, first or found, strict=True):
            assert_same_bits(mine, before)
        first = first or found


@pytest.fixture
def times(monkeypatch):
    """A clock by which looking, skipping and dense attention take so many seconds, and what was done."""
    seconds, taken, now = {}, [], [0.0]

    def timed(name, function):
        def run(*args, **kwargs):
            taken.append(name)
            now[0] += seconds[name]
            return function(*args, **kwargs)

        return run

    kernels = {"look": cpu.find_seen, "skip": cpu.masked_attention}
    named = {kernel.__name__: timed(name, kernel) for name, kernel in kernels.items()}
    monkeypatch.setattr(masked, "load_kernel", lambda backend, module, op: named[op])
    monkeypatch.setattr(masked, "_flash", timed("dense", masked._flash))
    monkeypatch.setattr(masked.clock, "now", lambda: now[0])
    monkeypatch.setattr(masked, "LEAST_SCORES", 0)

    def spend(**each):
        seconds.update(each)
        taken.clear()
        return taken

    return spend


def test_the_prior_chooses_and_times_correct_it(times):
    taken = times(look=0.001, skip=3.0, dense=1.0)
    site = MaskSite("a layer")
    given, mask = [x.detach() for x in operands(300, 300)], windows(300, 300)
    masked_attention(*given, mask, site=site)
    assert taken == ["look", "skip"], "little is seen"
    masked_attention(*given, torch.rand(300, 300) < 0.5, site=site)
    assert taken[2:] == ["look", "dense"], "every block sees everything"
    most = torch.ones(300, 300, dtype=torch.bool).tril(100)
    for _ in range(80):
        masked_attention(*given, most, site=site)
    assert taken[5] == "skip", "some is not seen"
    assert taken[-1] == "dense", "skipping took three times as long"
    assert "a layer: " in site.explain() and "dense" in site.explain()


def test_looking_in_vain_is_rare_where_it_takes_long(times):
    given, site = [x.detach() for x in operands(300, 300)], MaskSite()
    taken = times(look=0.02, skip=1.0, dense=1.0)
    masked_attention(*given, torch.ones(300, 300, dtype=torch.bool), site=site)
    assert taken == ["dense"], "a few rows tell that everything is seen"
    for _ in range(40):
        masked_attention(*given, torch.rand(300, 300) < 0.5, site=site)
    assert taken.count("look") == 3
    taken = times(look=0.005)
    for _ in range(40):
        masked_attention(*given, torch.rand(300, 300) < 0.5, site=site)
    assert taken.count("look") > 20


def test_one_graph_for_all_masks_in_training():
    site = MaskSite()

    def layer(q, k, v, mask):
        return masked_attention(q * 2, k, v, mask, site=site) * 3

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    given = operands(256, 256)
    masks = [windows(256, 256), torch.rand(256, 256) < 0.5, torch.zeros(256, 256, dtype=torch.bool)]

    def check(mask):
        found = [f(*given, mask) for f in (compiled, layer)]
        weights = torch.randn_like(found[0])
        ours, eager = (torch.autograd.grad((y * weights).sum(), given) for y in found)
        torch.testing.assert_close([found[0], *ours], [found[1], *eager])

    check(masks[0])
    with assert_no_recompile():
        for mask in masks[1:]:
            check(mask)


@pytest.mark.parametrize("op", ["choose_masked_attention", "choose_masked_attention_backward"])
def test_schema_and_fake(op):
    q, k, v = (x.detach() for x in operands(20, 30))
    mask = windows(20, 30)[None, None]
    given = (q, k, v, mask, MaskSite().handle, 0.3)
    if op.endswith("backward"):
        out, lse = torch.ops.gossamer.choose_masked_attention(*given)
        given = (torch.randn_like(out), q, k, v, mask, out, lse, given[4], 0.3)
    torch.library.opcheck(getattr(torch.ops.gossamer, op).default, given)


def test_a_mask_that_learns_is_torchs():
    given = operands(20, 20)
    mask = torch.randn(H, 20, 20, requires_grad=True)
    y = masked_attention(*given, mask)
    expected = scaled_dot_product_attention(*given, attn_mask=mask[None], enable_gqa=True)
    torch.testing.assert_close(y, expected)
    assert torch.autograd.grad(y.sum(), mask)[0].shape == mask.shape
    with pytest.raises(ValueError, match="mask must not require a gradient"):
        masked_attention(*given, mask, backend="cpu")


Q, K = torch.zeros(B, H, 5, 8), torch.zeros(B, HK, 7, 8)
SEEN = torch.ones(5, 7, dtype=torch.bool)
BAD = [
    ((Q[0], K, K, SEEN), {}, ValueError, r"q must have shape \[B, H, S, d\], got \(4, 5, 8\)"),
    ((Q, K[..., :3], K, SEEN), {}, ValueError, r"k must have q's B and d"),
    ((Q, K, K[:, :, :3], SEEN), {}, ValueError, r"v must have k's shape"),
    ((Q[:, :3], K, K, SEEN), {}, ValueError, "k must have heads that divide the 3 of q, got 2"),
    ((Q, K, K, SEEN.int()), {}, TypeError, "mask must be bool"),
    ((Q, K, K, SEEN.t()), {}, ValueError, r"mask must broadcast to \[B, H, S, Sk\] = \(2, 4, 5, 7\)"),
    ((Q, K, K, SEEN.expand(3, 1, 5, 7)), {}, ValueError, "mask must broadcast"),
    ((Q, K, K, None), {}, TypeError, "mask must be a tensor, got NoneType"),
    ((Q, K, K, SEEN), {"dropout": 0.1}, ValueError, "dropout must be 0.*0.1"),
    ((Q, K, K, SEEN), {"site": 3}, TypeError, "site must be a gossamer.ops.MaskSite, its handle or None, got int"),
    ((Q, K, K, SEEN), {"backend": "triton"}, ValueError, "needs q on cuda"),
]


@pytest.mark.parametrize("given, more, error, message", BAD, ids=[each[3][:30] for each in BAD])
def test_what_is_refused(given, more, error, message):
    with pytest.raises(error, match=message):
        masked_attention(*given, **more)


def test_layouts():
    """Operands and masks lie anyhow; the result is the same to the last bit."""
    q, k, v = (x.detach() for x in operands(100, 100))
    mask = windows(100, 100)
    expected = masked_attention(q, k, v, mask, backend="cpu")
    loose = [torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] for x in (q, k, v)]
    for each, seen in itertools.product(
        ([q.contiguous(), k.contiguous(), v.contiguous()], loose), (mask, mask.t().contiguous().t())
    ):
        assert_same_bits(masked_attention(*each, seen, backend="cpu"), expected)

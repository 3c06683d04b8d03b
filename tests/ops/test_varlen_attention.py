"""Packed texts are each torch's own attention, at run time of any kind; gradients, dropout, graphs, what is refused."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gossamer.ops import varlen_attention
from gossamer.testing import assert_no_recompile, assert_same_bits

SIZE, HEADS, KEY_HEADS = 9, 4, 2
LENGTHS = ([3, 0, 7, 1], [SIZE, SIZE], [1], [0], [0, 5, 0], [2, 2, 2])
KINDS = ("full", "causal", "masked")


def offsets_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def tokens_of(lengths):
    """Each text's tokens at places of their own in its row of the mask, in order."""
    return torch.cat([b * SIZE + torch.randperm(SIZE)[:n].sort().values for b, n in enumerate(lengths)])


def masks(texts, dtype):
    yield torch.rand(texts, 1, SIZE, SIZE) < 0.6
    yield torch.randn(1, HEADS, SIZE, SIZE, dtype=dtype)
    yield torch.zeros(texts, 1, 1, SIZE).where(torch.rand(texts, 1, 1, SIZE) < 0.7, -torch.inf)
    yield (torch.rand(1, 1, 1, SIZE) < 0.7).expand(texts, HEADS, SIZE, SIZE)


def operands(rows, width=8, value_width=8, dtype=torch.float32):
    """q, k, v as views of one projection, as a model has them."""
    wide = torch.randn(rows, HEADS + 2 * KEY_HEADS, max(width, value_width), dtype=dtype)
    q, k, v = wide.split([HEADS, KEY_HEADS, KEY_HEADS], 1)
    return [x.requires_grad_() for x in (q[..., :width], k[..., :width], v[..., :value_width])]


def one_by_one(q, k, v, lengths, kind, mask, tokens):
    """torch's attention of each text, of operands in float64."""
    found = []
    for b, (begin, count) in enumerate(zip(offsets_of(lengths).tolist(), lengths, strict=False)):
        if count == 0:
            continue
        each = (x[begin : begin + count].double().transpose(0, 1)[None] for x in (q, k, v))
        seen = None
        if kind == "masked":
            at = tokens[begin : begin + count] - b * SIZE
            seen = mask.expand(-1, -1, SIZE, -1)[b if len(mask) > 1 else 0][:, at][:, :, at][None]
            seen = seen if seen.dtype == torch.bool else seen.double()
        y = scaled_dot_product_attention(*each, attn_mask=seen, is_causal=kind == "causal", enable_gqa=True)
        found.append(y[0].transpose(0, 1))
    return torch.cat(found) if found else q.double() + k.sum() + v.sum()


def assert_near(actual, exact, largest, score):
    """Scores up to `score` in size are off by so many roundings, and what they weigh is at most `largest`."""
    bound = (8 + 4 * score) * torch.finfo(actual.dtype).eps * largest
    assert actual.shape == exact.shape and bool(((actual.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_text_is_torchs_attention(kind, dtype):
    for lengths in LENGTHS:
        rows = sum(lengths)
        for mask in masks(len(lengths), dtype) if kind == "masked" else [None]:
            q, k, v = operands(rows, dtype=dtype)
            tokens = tokens_of(lengths)
            weights = torch.randn(rows, HEADS, 8, dtype=dtype)
            y = varlen_attention(q, k, v, offsets_of(lengths), kind=kind, mask=mask, tokens=tokens)
            assert y.dtype == dtype and y.is_contiguous()
            exact = one_by_one(q, k, v, lengths, kind, mask, tokens)
            q_most, k_most, v_most, most = (float(x.detach().abs().max()) if rows else 0 for x in (q, k, v, weights))
            score = 8**0.5 * q_most * k_most
            assert_near(y, exact, v_most, score)
            ours, theirs = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (y, exact))
            by_score = 2 * 8 * most * v_most / 8**0.5
            shared = SIZE * HEADS / KEY_HEADS
            for mine, other, largest in zip(
                ours, theirs, (by_score * k_most, shared * by_score * q_most, shared * most), strict=True
            ):
                assert_near(mine, other.double(), largest, score)


def test_another_width_of_values_and_a_scale():
    lengths = [4, 6]
    q, k, v = operands(10, 3, 5, torch.float64)
    y = varlen_attention(q, k, v, offsets_of(lengths), kind="causal", scale=3**-0.5)
    torch.testing.assert_close(y, one_by_one(q, k, v, lengths, "causal", None, None))
    doubled = varlen_attention(2 * q, k, v, offsets_of(lengths), kind="causal", scale=3**-0.5 / 2)
    torch.testing.assert_close(doubled, y)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(1, HEADS, SIZE, SIZE), (3, 1, 1, SIZE)], ids=str)
def test_gradients_of_first_and_second_order(dropout, shape):
    lengths = [3, 0, 4]
    tokens = tokens_of(lengths)
    mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def attend(*each):
        torch.manual_seed(5)
        *qkv, mask = each
        return varlen_attention(
            *qkv, offsets_of(lengths), kind="masked", mask=mask, tokens=tokens, dropout=dropout
        )  # fmt: skip

    given = (*operands(7, 2, 3 if dropout else 2, torch.float64), mask)
    assert torch.autograd.gradcheck(attend, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, given, fast_mode=True)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_dropout(backend):
    """Weights of identical keys are 1 / n; a dropped one is missing, the rest grow. A seed repeats it."""
    n, share = 200, 0.3
    q, k = torch.zeros(2 * n, 1, n), torch.zeros(2 * n, 1, n)
    v = torch.eye(n).repeat(2, 1)[:, None]

    def weights(seed):
        torch.manual_seed(seed)
        return varlen_attention(q, k, v, torch.tensor([0, n, 2 * n]), dropout=share, backend=backend)

    first = weights(1)
    assert_same_bits(weights(1), first)
    assert not torch.equal(weights(2), first)
    assert not torch.equal(first[:n], first[n:])
    kept = first != 0
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 1 / n / (1 - share)))
    dropped = kept.numel() - int(kept.sum())
    assert abs(dropped - share * kept.numel()) < 5 * (share * (1 - share) * kept.numel()) ** 0.5
    assert not varlen_attention(q, k, v, torch.tensor([0, 2 * n]), dropout=1, backend=backend).any()


def test_what_sees_nothing_is_zero_and_moves_nothing():
    q, k, v = operands(4)
    mask = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    mask[..., 2, :] = False
    y = varlen_attention(q, k, v, torch.tensor([0, 4]), kind="masked", mask=mask, tokens=torch.arange(4))
    assert not y[2].any() and y[[0, 1, 3]].all()
    by_query = torch.autograd.grad(y.sum(), q)[0]
    assert not by_query[2].any() and by_query.isfinite().all()


def test_one_graph_for_all_kinds_and_lengths_in_training():
    def layer(q, k, v, offsets, kind, mask, tokens):
        return varlen_attention(q * 2, k, v, offsets, kind=kind, mask=mask, tokens=tokens) * 3

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")

    def compare(lengths, kind):
        given = operands(sum(lengths))
        rest = offsets_of(lengths), torch.tensor(kind), torch.rand(len(lengths), 1, SIZE, SIZE) < 0.8
        found = [f(*given, *rest, tokens) for tokens in [tokens_of(lengths)] for f in (compiled, layer)]
        torch.testing.assert_close(found[0], found[1])
        weights = torch.randn_like(found[0])
        ours, eager = (torch.autograd.grad((y * weights).sum(), given) for y in found)
        torch.testing.assert_close(ours, eager)

    compare([3, 4, 2, 1, 1], 0)  # sizes that are no two alike: torch would take equal ones for the same
    with assert_no_recompile():
        for lengths in ([5, 6], [SIZE] * 4, [0, 2, 0, 2]):
            for kind in range(3):
                compare(lengths, kind)


def test_export():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, offsets):
            return varlen_attention(q, k, v, offsets, kind="causal")

    rows = torch.export.Dim("rows")
    shapes = {name: {0: rows} for name in "qkv"} | {"offsets": None}
    given = [x.detach() for x in operands(6)]
    exported = torch.export.export(Layer(), (*given, offsets_of([2, 4])), dynamic_shapes=shapes).module()
    given = [x.detach() for x in operands(11)]
    assert_same_bits(exported(*given, offsets_of([8, 3])), Layer()(*given, offsets_of([8, 3])))


Q = torch.zeros(4, HEADS, 8)
K = torch.zeros(4, KEY_HEADS, 8)
ENDS = torch.tensor([0, 4])
MASK = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
BAD = [
    ((Q.int(), K.int(), K.int(), ENDS), {}, TypeError, "q must be float64.*int32"),
    ((Q[0], K, K, ENDS), {}, ValueError, r"q must have shape \[T, H, d\], got \(4, 8\)"),
    ((Q, K.double(), K, ENDS), {}, TypeError, "k must be torch.float32.*float64"),
    ((Q, K[:3], K[:3], ENDS), {}, ValueError, r"k must have q's T and d.*\(3, 2, 8\)"),
    ((Q, K, K[:3], ENDS), {}, ValueError, r"v must have k's shape.*\(3, 2, 8\)"),
    ((Q[:, :3], K, K, ENDS), {}, ValueError, "k must have heads that divide the 3 of q, got 2"),
    ((Q, K, K, ENDS.int()), {}, TypeError, "offsets must be int64, got torch.int32"),
    ((Q, K, K, ENDS[None]), {}, ValueError, r"offsets must have shape \[texts \+ 1\], got \(1, 2\)"),
    ((Q, K, K, torch.tensor([0, 3])), {}, ValueError, r"offsets must never decrease from 0 to the 4 .*\[0, 3\]"),
    ((Q, K, K, torch.tensor([0, 5, 4])), {}, ValueError, r"offsets must never decrease.*\[0, 5, 4\]"),
    ((Q, K, K, torch.tensor([1, 4])), {}, ValueError, r"offsets must never decrease.*\[1, 4\]"),
    ((Q, K, K, ENDS), {"kind": "some"}, ValueError, "kind must be 'full', 'causal', 'masked'.*'some'"),
    ((Q, K, K, ENDS), {"kind": torch.tensor(7)}, ValueError, "kind must be 0 .*got 7"),
    ((Q, K, K, ENDS), {"kind": torch.tensor([1])}, TypeError, r"kind must be int64\[\]"),
    ((Q, K, K, ENDS), {"kind": "masked"}, ValueError, "mask must be given with kind='masked'"),
    ((Q, K, K, ENDS), {"kind": torch.tensor(2), "mask": MASK}, ValueError, "tokens must be given where kind is 2"),
    ((Q, K, K, ENDS), {"mask": MASK.int()}, TypeError, "mask must be bool.*int32"),
    ((Q, K, K, ENDS), {"mask": MASK[0]}, ValueError, r"mask must have shape .*\(1, 9, 9\)"),
    ((Q, K, K, ENDS), {"tokens": ENDS}, ValueError, r"tokens must have shape \[4\]"),
    ((Q, K, K, ENDS), {"dropout": 1.5}, ValueError, "dropout must be a number from 0 to 1, got 1.5"),
    ((Q, K, K, ENDS), {"backend": "triton"}, ValueError, "needs q on cuda"),
]


@pytest.mark.parametrize("given, more, error, message", BAD, ids=[each[3][:30] for each in BAD])
def test_what_is_refused(given, more, error, message):
    with pytest.raises(error, match=message):
        varlen_attention(*given, **more)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    "lengths, mask, tokens, message",
    [
        ([2, 2], MASK, [0, 1, 0, 1], r"tokens of text 1 must be 1 \* 9 \+ places in \[0, 9\)"),
        ([4], MASK, [0, 1, 2, 9], "tokens of text 0"),
        ([4], MASK, [-1, 1, 2, 3], "tokens of text 0"),
        ([1, 1, 2], MASK.expand(2, -1, -1, -1), [0, 9, 18, 19], "mask must be of 1 text or of all 3"),
        ([4], MASK[:, :, :5], [0, 1, 2, 3], "mask must have 1 row or as many as columns"),
    ],
)
def test_places_of_the_mask_are_checked(lengths, mask, tokens, message, backend):
    with pytest.raises(ValueError, match=message):
        varlen_attention(
            Q, K, K, offsets_of(lengths), kind="masked", mask=mask, tokens=torch.tensor(tokens), backend=backend
        )

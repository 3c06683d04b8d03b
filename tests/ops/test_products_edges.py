"""Laws at the edges: nothing is summed over, tangents, autocast, tiles named twice, tiles dropped."""

import io
import pickle

import pytest
import torch

import gossamer as gs

S = torch.eye(4)
P = gs.Pattern.from_mask(S.bool(), (2, 2))
V, B = P.pack(S), torch.ones(4, 3)
TWICE = gs.Pattern(torch.tensor([0, 2]), torch.tensor([1, 1], dtype=torch.uint16), (2, 4), (2, 2))


@pytest.mark.parametrize("options", [{"axis": "m"}, {"axis": "k"}, {"tile": (2, 2)}])
def test_gradients_of_a_product_without_inner_extent(options):
    a, b = torch.zeros(6, 0, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    c = gs.ops.matmul(a, b, **options)
    c.sum().backward()
    assert torch.equal(c, torch.zeros(6, 3)) and a.grad.shape == (6, 0) and b.grad.shape == (0, 3)


@pytest.mark.parametrize("call", [
    lambda b: gs.ops.dsd(V, P, b), lambda b: gs.ops.dds(b.t(), V, P), lambda b: gs.ops.sdd(S, b @ b.t(), P),
    lambda b: gs.ops.matmul(S, b, axis="m"), lambda b: gs.ops.gather(b @ b.t(), P),
])  # fmt: skip
def test_forward_derivatives_are_refused_and_not_zero(call):
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(call, (B,), (B,))


def test_autocast_leaves_the_dtype_whatever_a_plan_chose():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gs.ops.matmul(S, B).dtype == gs.ops.matmul(S, B, axis="m").dtype == torch.float32


@pytest.mark.parametrize("call", [
    lambda: gs.ops.dsd(torch.ones(2, 2, 2), TWICE, B), lambda: gs.ops.sdd(B[:2], B.t(), TWICE),
    lambda: gs.ops.matmul(torch.ones(2, 4), B, index=TWICE),
])  # fmt: skip
def test_check_refuses_a_tile_that_is_named_twice(call, monkeypatch):
    monkeypatch.setattr("gossamer.kernels.cpu._call.CHECK_REPEATS", True)
    with pytest.raises(ValueError, match="must not repeat a tile: tile row 0 lists column 1 more than once"):
        call()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropped_tiles_add_nothing_and_have_no_gradient(dtype, column_major, backend, monkeypatch):
    monkeypatch.setattr("gossamer.kernels.cpu._call.CHECK_REPEATS", True)
    pattern = gs.Pattern.full((8, 8), (2, 2))
    encoded = gs.planner.Buckets(4, 4, 2, oversize=0.0, policy="drop").encode(pattern)
    # Whole rows of tiles are left out.
    named = torch.zeros(pattern.capacity, dtype=torch.bool)
    for _, first, end in encoded.work.flatten(0, 1).tolist():
        named[first:end] = True
    assert encoded.dropped == 12 == int((~encoded.kept).sum()) and torch.equal(encoded.kept, named)
    values, b = (
        torch.randn(16, 2, 2, dtype=dtype, requires_grad=True),
        torch.randn(8, 3, dtype=dtype, requires_grad=True),
    )
    c = gs.ops.dsd(encoded.keep(values), pattern, b, work=encoded.work, column_major=column_major, backend=backend)
    expected = pattern.unpack(values * named.view(-1, 1, 1)) @ b
    torch.testing.assert_close(c, expected)
    dc = torch.randn_like(c)
    gradients = torch.autograd.grad(c, (values, b), dc)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (values, b), dc))
    assert not gradients[0][~named].any() and gradients[0][named].all()


def test_what_is_dropped_must_be_zero(monkeypatch):
    monkeypatch.setattr("gossamer.kernels.cpu._call.CHECK_REPEATS", True)
    pattern = gs.Pattern.full((8, 8), (2, 2))
    encoded = gs.planner.Buckets(4, 4, 2, oversize=0.0, policy="drop").encode(pattern)
    with pytest.raises(ValueError, match="only slots whose values are zero may be left out"):
        gs.ops.dsd(torch.ones(16, 2, 2), pattern, torch.ones(8, 3), work=encoded.work)
    with pytest.raises(ValueError, match=r"values must be a tensor with 16 slots, got \[3\]"):
        encoded.keep(torch.ones(3))
    whole = gs.planner.Buckets(4, 16, 2, policy="drop").encode(pattern)
    values = torch.ones(16, 2, 2)
    assert whole.kept is None and whole.keep(values) is values


def test_patterns_can_be_pickled():
    for pattern in (P, gs.Pattern.from_topk(S, 2), gs.Pattern.full((1, 70000))):
        assert pickle.loads(pickle.dumps(pattern)).equals(pattern)
        file = io.BytesIO()
        torch.save({"index": pattern}, file)
        file.seek(0)
        assert torch.load(file, weights_only=True)["index"].equals(pattern)

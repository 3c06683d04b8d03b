"""Law: modules in bfloat16 and float16 compute on a CPU, both ways, within bounds made of their roundings."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import gossamer as gs
from gossamer.nn import (
    BlockSparseAttention,
    BlockSparseLinear,
    Experts,
    ReLUFeedForward,
    Unpadded,
    block_sparse_attention,
)
from gossamer.testing import assert_within, gamma
from gossamer.testing.asserts import unit_roundoff

F32 = torch.float32
HALF = [torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
WINDOW = gs.Pattern.from_mask((torch.arange(12)[:, None] - torch.arange(12)).abs() < 5, (4, 4))


class Bounded:
    """A float64 value and how far its half computation may be from it, through products and roundings."""

    def __init__(self, value: Tensor, error: Tensor | float = 0.0) -> None:
        self.value, self.error = value, torch.as_tensor(error, dtype=torch.float64).expand_as(value)

    def times(self, weight: Tensor) -> Bounded:
        """A product summed in float32, not rounded yet."""
        large = (self.value.abs() + self.error) @ weight.abs()
        error = self.error @ weight.abs() + gamma(weight.shape[-2] + 2, F32) * large
        return Bounded(self.value @ weight, error)

    def plus(self, term: Tensor) -> Bounded:
        return Bounded(self.value + term, self.error)

    def rounded(self, dtype: torch.dtype) -> Bounded:
        u = unit_roundoff(dtype)
        return Bounded(self.value, self.error * (1 + u) + u * self.value.abs() + torch.finfo(dtype).smallest_normal)

    def relu(self) -> Bounded:
        return Bounded(self.value.relu(), self.error)


def wide(x: Tensor) -> Tensor:
    return x.detach().double()


@by_dtype
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_linear(storage: str, dtype: torch.dtype) -> None:
    layer = BlockSparseLinear(40, 24, block=8, density=0.5).to(dtype)
    layer.store(storage)
    x = torch.randn(7, 40).to(dtype).requires_grad_()
    y = layer(x)
    weight = wide(layer.to_dense())
    bound = Bounded(wide(x)).times(weight.t()).rounded(dtype).plus(wide(layer.bias)).rounded(dtype)
    assert y.dtype == dtype
    assert_within(y.detach(), bound.value, bound.error)
    dy = torch.randn_like(y)
    y.backward(dy)
    bound = Bounded(wide(dy)).times(weight).rounded(dtype)
    assert_within(x.grad, bound.value, bound.error)
    if storage == "float32":
        assert layer.to_dense().dtype == layer.to_linear().weight.dtype == dtype
        bound = Bounded(wide(dy).t()).times(wide(x)).rounded(dtype)
        assert_within(layer.values.grad, layer.pattern.pack(bound.value), layer.pattern.pack(bound.error))


@by_dtype
@pytest.mark.parametrize("tile", ["auto", (4, 1), (1, 32)], ids=str)
def test_relu_feed_forward(tile, dtype: torch.dtype) -> None:
    block = ReLUFeedForward(16, 32, tile=tile).to(dtype)
    x = torch.randn(8, 16).to(dtype).requires_grad_()
    y = block(x)
    inner = Bounded(wide(x)).times(wide(block.up.weight).t()).plus(wide(block.up.bias)).rounded(dtype).relu()
    bound = inner.times(wide(block.down.weight).t()).rounded(dtype).plus(wide(block.down.bias)).rounded(dtype)
    assert y.dtype == dtype
    assert_within(y.detach(), bound.value, bound.error)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in block.parameters())


@by_dtype
def test_experts(dtype: torch.dtype) -> None:
    moe = Experts(16, 24, experts=5, top_k=2).to(dtype)
    x = torch.randn(30, 16).to(dtype).requires_grad_()
    ids, gates, probabilities = moe.route(x)
    assert gates.dtype == probabilities.dtype == F32
    y = moe(x)
    total = Bounded(torch.zeros(30, 16, dtype=torch.float64))
    for j in range(2):
        up, down = wide(moe.up)[ids[:, j]], wide(moe.down)[ids[:, j]]
        out = Bounded(wide(x).unsqueeze(1)).times(up).rounded(dtype).relu().times(down).rounded(dtype)
        gate = wide(gates[:, j, None])
        size = gate * (out.value.squeeze(1).abs() + out.error.squeeze(1))
        error = total.error + gate * out.error.squeeze(1) + gamma(4, F32) * size
        total = Bounded(total.value + gate * out.value.squeeze(1), error)
    bound = total.rounded(dtype)
    assert y.dtype == dtype
    assert_within(y.detach(), bound.value, bound.error)
    y.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and bool(p.grad.any()) for p in moe.parameters())
    reference, dy = copy.deepcopy(moe).double(), torch.randn(y.shape).to(dtype)
    z = x.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(moe(x, ids, gates.detach()), x, dy)
    (exact,) = torch.autograd.grad(reference(z, ids, wide(gates)), z, wide(dy))
    # Some ten roundings of numbers that are no larger than the largest of their sums.
    assert_within(found, exact, 16 * unit_roundoff(dtype) * exact.abs().max().expand_as(exact))


@by_dtype
def test_attention_is_rounded_once(dtype: torch.dtype) -> None:
    """Scores of some hundreds: rounded to eight bits, their exponentials would be off by a factor of e."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 12, 8).to(dtype).requires_grad_() for _ in range(3))
    inputs = [q, k, v]
    y = block_sparse_attention(q * 10, k * 10, v, WINDOW, scale=1.0)
    wide_inputs = [wide(q * 10), wide(k * 10), wide(v)]
    z = scaled_dot_product_attention(*wide_inputs, attn_mask=WINDOW.to_mask(), scale=1.0)
    off = gamma(12, F32) * (wide_inputs[0].abs() @ wide_inputs[1].abs().mT).amax((-2, -1), keepdim=True)  # of a score
    assert y.dtype == dtype and float(off.max()) < 0.01
    assert_within(y.detach(), z, 4 * (off + gamma(16, F32)) * wide_inputs[2].abs().amax((-2, -1), keepdim=True))
    for grad in torch.autograd.grad(y.sum(), inputs):
        assert grad.dtype == dtype and grad.isfinite().all()


@by_dtype
def test_attention_module_trains(dtype: torch.dtype) -> None:
    layer = BlockSparseAttention(16, 2, WINDOW, causal=True).to(dtype)
    x = torch.randn(2, 12, 16).to(dtype).requires_grad_()
    y = layer(x)
    expected = copy.deepcopy(layer).double()(x.double())
    # Projections round their inputs' products to `dtype`; outputs are means of numbers around one.
    assert_within(y.detach(), expected.detach(), torch.full_like(expected, 16 * unit_roundoff(dtype)))
    y.sum().backward()
    assert x.grad.dtype == dtype and all(p.grad.dtype == dtype for p in layer.parameters())


@by_dtype
def test_unpadded(dtype: torch.dtype) -> None:
    run = Unpadded(nn.Sequential(Experts(8, 8, experts=3), BlockSparseLinear(8, 8, block=4, density=1.0))).to(dtype)
    x = torch.randn(2, 5, 8).to(dtype).requires_grad_()
    y = run(x, lengths=torch.tensor([5, 0]))
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype and not y[1].any() and bool(x.grad[0].any())


AUTOCAST = {
    "linear": (lambda: BlockSparseLinear(8, 8, block=4, density=0.5), "own"),
    "linear, int8, no bias": (lambda: BlockSparseLinear(8, 8, False, block=4, density=0.5, storage="int8"), "float32"),
    "experts": (lambda: Experts(8, 8, experts=2, top_k=2), "own"),
    "feed-forward": (lambda: ReLUFeedForward(8, 16, tile=(2, 1)), "own"),
    "attention": (lambda: BlockSparseAttention(8, 2, gs.Pattern.full((6, 6), (2, 2))), "autocast"),
}


@pytest.mark.parametrize("given", [F32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("own", [F32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", AUTOCAST)
def test_the_dtype_under_autocast(name: str, own: torch.dtype, given: torch.dtype) -> None:
    make, out = AUTOCAST[name]
    module, x = make().to(own), torch.randn(2, 6, 8, dtype=given, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        y = module(x)
    assert y.dtype == {"own": own, "float32": F32, "autocast": torch.float16}[out]
    y.float().sum().backward()
    assert x.grad.dtype == given


def test_the_steps_of_int8_stay_float32() -> None:
    layer = BlockSparseLinear(16, 16, block=4, density=0.5, storage="int8")
    scale = layer.scale.clone()
    assert torch.equal(layer.bfloat16().scale, scale) and torch.equal(layer.double().float().scale, scale)


@pytest.mark.parametrize(("ours", "theirs"), [("int8", "float32"), ("float32", "int8")])
def test_a_state_stored_otherwise_is_refused(ours: str, theirs: str) -> None:
    """copy_ would turn one into the other without a word."""
    mine, other = (BlockSparseLinear(16, 16, block=4, density=0.5, storage=kind) for kind in (ours, theirs))
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(RuntimeError, match="store alike"):
        mine.load_state_dict(other.state_dict(), strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_dtypes_that_do_not_meet_are_named() -> None:
    stored = BlockSparseLinear(16, 16, block=4, density=0.5, storage="int8")
    with pytest.raises(TypeError, match=r"x must have the layer's dtype float32, bfloat16 or float16 beside .* int8"):
        stored(torch.randn(2, 16, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"x must have the module's dtype torch.float32, got torch.bfloat16"):
        Experts(4, 4, experts=2)(torch.randn(2, 4).bfloat16())
    q = torch.randn(12, 4)
    with pytest.raises(TypeError, match=r"q, k and v must have one float dtype, got .*float32, .*bfloat16"):
        block_sparse_attention(q, q.bfloat16(), q, WINDOW)

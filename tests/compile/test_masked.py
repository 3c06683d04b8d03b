"""Attention over masks in graphs of Dynamo: what is replaced, what stays and why, with the answers of eager."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.functional import scaled_dot_product_attention

from gossamer import ops
from gossamer.compile.masks import masked
from gossamer.ops.attention import masked as op
from gossamer.testing import assert_no_recompile

HEADS, WIDTH = 4, 16


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(masked, "LEAST_SCORES", 0)
    monkeypatch.setattr(op, "LEAST_SCORES", 0)
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Decoder(nn.Module):
    """Attention of one layer over a mask that its input decides."""

    def __init__(self, dropout=0.0, **more):
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)
        self.dropout, self.more = dropout, more

    def forward(self, x, mask):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout, **self.more)
        return self.out(y.transpose(1, 2).flatten(2))


def compiled(function, found):
    def backend(gm, inputs):
        found.extend(masked.rewrite(gm))
        targets = [node.target for node in gm.graph.nodes]
        assert (ops.masked_attention in targets) == any(each.choice != "dense" for each in found)
        return aot_eager(gm, inputs)

    return torch.compile(function, backend=backend, fullgraph=True)


def documents(length):
    number = (torch.rand(length) < 0.05).cumsum(0)
    return (number[:, None] == number) & torch.ones(length, length, dtype=torch.bool).tril()


def test_any_mask_in_one_graph_with_gradients():
    model, found = Decoder(), []
    fast = compiled(model, found)
    x = torch.randn(2, 130, 64, requires_grad=True)

    def check(mask):
        weights = torch.randn(2, 130, 64)
        ours, eager = (
            [y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])]
            for y in (fast(x, mask), model(x, mask))
        )
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)

    check(documents(130))
    (finding,) = found
    assert (finding.operator, finding.zeros, finding.choice) == ("attention", "mask", "skip or dense, at run time")
    assert "j" in finding.axes and "mask" in finding.why
    with assert_no_recompile():
        for mask in (documents(130), torch.rand(130, 130) < 0.5, torch.zeros(130, 130, dtype=torch.bool)):
            check(mask)
    assert "forward: " in finding.gain() and "backward: " in finding.gain()


def test_a_mask_of_numbers_and_sizes_that_change():
    model, found = Decoder(), []
    fast = compiled(model, found)
    for length in (140, 201):
        x, mask = torch.randn(3, length, 64), torch.zeros(3, 1, length, length)
        mask.masked_fill_(~documents(length), torch.finfo(torch.float32).min)
        torch._dynamo.mark_dynamic(x, 1)
        torch._dynamo.mark_dynamic(mask, (2, 3))
        with torch.no_grad():
            torch.testing.assert_close(fast(x, mask), model(x, mask), rtol=1e-4, atol=1e-4)
    assert [each.choice for each in found] == ["skip or dense, at run time"]


@pytest.mark.parametrize(
    "model, mask, dtype, why",
    [
        (Decoder(dropout=0.1), documents(40), torch.float32, "dropped"),
        (Decoder(), torch.zeros(40, 40, dtype=torch.float64), torch.float64, "no kernel skips in torch.float64"),
        (Decoder(), torch.zeros(HEADS, 40, 40, requires_grad=True), torch.float32, "its mask learns"),
    ],
)
def test_what_stays(model, mask, dtype, why):
    found, x = [], torch.randn(2, 40, 64, dtype=dtype)
    fast = compiled(model.to(dtype), found)
    torch.manual_seed(1)
    y = fast(x, mask)
    torch.manual_seed(1)
    torch.testing.assert_close(y, model(x, mask))
    (finding,) = found
    assert finding.choice == "dense" and why in finding.why


def test_what_has_no_mask_or_too_little_work_stays(monkeypatch):
    found = []
    model, x = Decoder(is_causal=True), torch.randn(2, 40, 64)
    torch.testing.assert_close(compiled(model, found)(x, None), model(x, None))
    assert not found
    monkeypatch.setattr(masked, "LEAST_SCORES", 2**20)
    model = Decoder()
    compiled(model, found)(x, documents(40))
    assert "too little work for any gain" in found[0].why


def test_the_backend_does_it():
    model, x, mask = Decoder(), torch.randn(2, 130, 64), documents(130)
    fast = torch.compile(model, backend="gossamer", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(fast(x, mask), model(x, mask), rtol=1e-4, atol=1e-4)

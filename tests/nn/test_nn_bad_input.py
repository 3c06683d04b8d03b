"""Law: a module refuses what does not fit it, naming the argument, and is then what it was."""

import pytest
import torch

import gossamer as gs

FULL = gs.Pattern.full((8, 8), (4, 4))
MOE = gs.nn.Experts(16, 8, experts=4, top_k=2)
Q = torch.randn(2, 8, 4)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (((None,), {}), TypeError, "pattern must be a gossamer.Pattern, got NoneType"),
    (((FULL,), {"overflow": "dense"}), ValueError, "overflow must be .* got 'dense'"),
    (((FULL,), {"values": "zero"}), ValueError, "values must be .* got 'zero'"),
    (((FULL,), {"values": [1.0]}), ValueError, r"values must be .* got \[1.0\]"),
])  # fmt: skip
def test_update_pattern(arguments, error, message):
    layer = gs.nn.BlockSparseLinear(8, 8, block=4, density=0.5)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(error, match=message):
        layer.update_pattern(*arguments[0], **arguments[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: gs.nn.BlockSparseLinear(8, 8, block=4, density=1.0)(torch.tensor(1.0)), ValueError, "x must have 8"),
    (lambda: MOE(torch.randn(4, 12)), ValueError, r"x must have 16 features, got shape \(4, 12\)"),
    (lambda: gs.nn.Unpadded(MOE)(torch.randn(1, 3, 16), lengths=torch.tensor([1.5])), TypeError, "lengths .*float32"),
    (lambda: gs.nn.block_sparse_attention(Q, Q, Q, torch.ones(8, 8)), TypeError, "pattern must be .* got Tensor"),
])  # fmt: skip
def test_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_experts_without_tokens():
    assert MOE(torch.randn(0, 7, 16)).shape == (0, 7, 16)

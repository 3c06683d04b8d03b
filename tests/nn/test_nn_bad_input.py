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


def broken(offsets, indices):
    return gs.Pattern(torch.tensor(offsets), torch.tensor(indices).to(torch.uint16), (8, 8), (4, 4))


@pytest.mark.parametrize(("pattern", "message"), [
    (broken([0, 1, 2], [0, 2]), "pattern is broken: indices must be below the 2 tile columns, got 2"),
    (broken([0, 2, 2], [1, 1]), "tile row 0 lists column 1 more than once"),
    (broken([0, 2, 1], [0, 1]), "offsets must never fall"),
    (broken([0, 1, 5], [0, 1]), "offsets must end at or below the capacity 2, got 5"),
    (gs.Pattern.full((8, 8), (4, 2)), r"pattern must have shape \(8, 8\) and tile \(4, 4\)"),
])  # fmt: skip
def test_a_broken_pattern_changes_nothing(pattern, message):
    layer = gs.nn.BlockSparseLinear(8, 8, block=4, density=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    momentum = optimizer.state[layer.values]["momentum_buffer"].clone()
    with pytest.raises(ValueError, match=message):
        layer.update_pattern(pattern, optimizer=optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(optimizer.state[layer.values]["momentum_buffer"], momentum)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: gs.nn.BlockSparseLinear(8, 8, density="a"), TypeError, "density must be a number, got 'a'"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, density=0.0), ValueError, r"density must be in \(0, 1\], got 0.0"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, density=1.0, seed="x"), TypeError, "seed must be an integer .* 'x'"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, block="ab", density=1.0), ValueError, "block must be .* got 'ab'"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, block=2.5, density=1.0), ValueError, "block must be .* got 2.5"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, density=1.0)(torch.ones(2, 8, dtype=torch.float64)), TypeError,
     "x must have the layer's dtype torch.float32, got torch.float64"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, density=1.0)(torch.ones(2, 8).int()), TypeError, "x must .* torch.int32"),
    (lambda: gs.nn.BlockSparseLinear(8, 8, density=1.0)([1.0]), TypeError, "x must be a tensor, got list"),
    (lambda: gs.nn.ReLUFeedForward(8, 8, tile=(0, 1)), ValueError, r"tile must be a pair .* at least 1, got \(0, 1\)"),
    (lambda: gs.nn.ReLUFeedForward(8, 8, tile="rows"), TypeError, "tile must be a pair of ints, got 'rows'"),
    (lambda: gs.nn.ReLUFeedForward(8, 8, tile=4), TypeError, "tile must be a pair of ints, got 4"),
    (lambda: MOE(torch.randn(3, 16), ids=torch.full((3, 1), 4)), ValueError, "ids must be below experts=4, got 4"),
    (lambda: MOE(torch.randn(3, 16), ids=torch.ones(3, 1)), TypeError, "ids must be an integer .* torch.float32"),
    (lambda: MOE(torch.randn(3, 16), ids=[[0]] * 3), TypeError, "ids must be an integer tensor, got list"),
    (lambda: MOE(torch.randn(3, 16), ids=torch.zeros(3).long()), ValueError,
     r"ids must have shape \[3, 'j'\], got \[3\]"),
    (lambda: MOE(torch.randn(3, 16), torch.zeros(3, 2).long(), torch.ones(3, 1)), ValueError,
     r"gates must have the shape of ids \[3, 2\], got \[3, 1\]"),
])  # fmt: skip
def test_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""FanInLinear: its gradients and forms, its pattern when it changes, and training methods that drive it."""

import copy

import pytest
import torch

import gossamer as gs
from gossamer import Pattern
from gossamer.nn import FanInLinear
from gossamer.testing import assert_same_bits


def test_it_is_the_dense_layer_of_its_matrix():
    layer = FanInLinear(11, 7, fan_in=3, seed=0, dtype=torch.float64)
    dense = torch.nn.Linear(11, 7, dtype=torch.float64)
    dense.load_state_dict({"weight": layer.to_dense().detach(), "bias": layer.bias.detach()})
    x = torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), dense(x)
    assert torch.allclose(y, expected) and torch.allclose(layer.to_csr().to_dense(), dense.weight)
    dx, dv = torch.autograd.grad(y.square().sum(), (x, layer.values))
    dx_dense, dw = torch.autograd.grad(expected.square().sum(), (x, dense.weight))
    assert torch.allclose(dx, dx_dense) and torch.allclose(dv, dw.gather(1, layer.pattern.indices.long()))
    assert torch.allclose(torch.autograd.grad(layer.to_dense().sum(), layer.values)[0], torch.ones(7, 3).double())


def test_it_keeps_the_largest_of_a_dense_layer():
    dense = torch.nn.Linear(4, 2)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[1.0, -3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]))
    layer = FanInLinear.from_dense(dense, fan_in=3)
    assert layer.pattern.indices.tolist() == [[0, 1, 3], [0, 1, 2]] and layer.values[0].tolist() == [1.0, -3.0, 2.0]
    assert torch.equal(layer.bias, dense.bias)


def test_copies_states_dtypes_and_graphs():
    layer, x = FanInLinear(9, 6, fan_in=4, seed=1), torch.randn(3, 9)
    assert_same_bits(copy.deepcopy(layer)(x), layer(x))
    other = FanInLinear(9, 6, fan_in=2, seed=2)
    other.load_state_dict(layer.state_dict())  # takes the other's fan-in, in the same Parameter
    assert_same_bits(other(x), layer(x))
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0.03, atol=0.03)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    gradient, layer.values.grad = layer.values.grad, None
    layer(x).sum().backward()
    assert_same_bits(gradient, layer.values.grad)
    layer.update_pattern(FanInLinear(9, 6, fan_in=4, seed=3).pattern)  # new contents of the same buffer
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same_bits(compiled(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32
    broken = layer.state_dict()
    broken["indices"] = torch.full_like(broken["indices"], 200)
    with pytest.raises(RuntimeError, match="indices: not a pattern of shape"):
        layer.load_state_dict(broken)


def test_a_new_pattern_moves_what_is_kept():
    layer = FanInLinear(4, 2, pattern=Pattern.from_mask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()), seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    values, momentum = layer.values.detach().clone(), optimizer.state[layer.values]["momentum_buffer"].clone()
    new = Pattern.from_mask(torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]]).bool())
    assert layer.update_pattern(new, optimizer=optimizer).tolist() == [-1, 1, 2, 3]
    for now, was in ((layer.values, values), (optimizer.state[layer.values]["momentum_buffer"], momentum)):
        assert now[0, 0] == 0 and now[0, 1] == was[0, 1] and torch.equal(now[1], was[1])
    for mask, error, match in (
        ([[1, 1, 1, 0], [1, 1, 0, 0]], ValueError, "as many elements in each row, at least 1, got 2 to 3"),
        ([[1, 0, 0, 0], [0, 1, 0, 0]], RuntimeError, "pattern has 1 elements in each row, expected fan_in=2"),
        ([[0, 0, 0, 0], [0, 0, 0, 0]], ValueError, "got 0 to 0"),
    ):
        with pytest.raises(error, match=match):
            layer.update_pattern(Pattern.from_mask(torch.tensor(mask).bool()))
    assert layer.pattern.equals(new)
    wider = Pattern.from_mask(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool())
    layer.update_pattern(wider, optimizer=optimizer, overflow="grow")
    assert layer.fan_in == 3 and optimizer.state[layer.values]["momentum_buffer"].shape == (2, 3)


@pytest.mark.parametrize("method", ["SET", "RigL", "MEST", "GradualMagnitude"])
def test_methods_move_its_inputs_and_keep_rows_even(method):
    def run():
        torch.manual_seed(0)
        model = torch.nn.Sequential(FanInLinear(30, 20, fan_in=6, seed=1), torch.nn.ReLU(), torch.nn.Linear(20, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        options = {"exclude": ["2.weight"], "density": 0.2, "total_steps": 12, "update_every": 2}
        driver = getattr(gs.training, method)(model, optimizer, **options)
        seen = [model[0].pattern.with_capacity(model[0].capacity)]
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(8, 30)).square().mean().backward()
            optimizer.step()
            if not model[0].pattern.equals(seen[-1]):
                seen.append(Pattern(None, model[0].pattern.indices.clone(), (20, 30), (1, 1)).validate())
        return model, driver, seen

    model, driver, seen = run()
    assert len(seen) > 3 and model[0].fan_in == 6 and driver.nnz() == 120
    again = run()[0]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_it_refuses():
    for options, match in (
        ({"fan_in": 9}, "fan_in must be at most in_features=8, got 9"),
        ({"fan_in": 0}, "fan_in must be an integer of at least 1, got 0"),
        ({"pattern": Pattern.full((4, 8), (2, 2))}, r"pattern must have shape \(4, 8\) and tile \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=match):
            FanInLinear(8, 4, **options)
    layer = FanInLinear(8, 4, fan_in=2)
    with pytest.raises(ValueError, match="x must have 8 features"):
        layer(torch.zeros(3, 7))
    with pytest.raises(TypeError, match=r"dtype torch\.float32, got torch\.float64"):
        layer(torch.zeros(3, 8).double())
    with pytest.raises(ValueError, match="fan_in must be an integer from 1 to in_features=8, got 9"):
        FanInLinear.from_dense(torch.nn.Linear(8, 4), fan_in=9)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda k: FanInLinear(16, 8, fan_in=k), 5),
        (lambda k: gs.nn.BlockSparseLinear(16, 8, block=2, density=k / 16), 12),
    ],
    ids=["fan-in", "tiles"],
)
@pytest.mark.parametrize("how", ["pattern", "state"])
def test_values_take_another_shape_while_an_earlier_loss_lives(make, other, how):
    layer, new, x = make(4), make(other), torch.randn(3, 16)
    loss = layer(x).sum()  # holds what autograd remembers of the parameter, its shape included
    loss.backward()
    if how == "state":
        layer.load_state_dict(new.state_dict())
    else:
        layer.update_pattern(new.pattern, overflow="grow")
        assert layer.values.grad.shape == layer.values.shape  # that of kept weights came along
    layer.zero_grad()
    later = layer(x).sum()
    later.backward()
    assert layer.values.grad.shape == new.values.shape and loss is not later

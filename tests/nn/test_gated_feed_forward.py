"""GatedFeedForward: the dense block at threshold 0, the masked one above, closed neurons never read."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gossamer as gs
from gossamer.ops import decoding
from gossamer.testing.clock import Clock

ACT = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


class Dense(nn.Module):
    """As Llama's."""

    def __init__(self, dim: int = 12, hidden: int = 40, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, hidden, bias=bias), nn.Linear(dim, hidden, bias=bias)
        self.down_proj, self.act_fn = nn.Linear(hidden, dim, bias=bias), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def masked(block, x, act, threshold):
    gate = act(F.linear(x, block.gate_proj.weight, block.gate_proj.bias))
    gate = gate * (gate.abs() > threshold) if threshold else gate
    inner = gate * F.linear(x, block.up_proj.weight, block.up_proj.bias)
    return F.linear(inner, block.down_proj.weight, block.down_proj.bias)


@pytest.mark.parametrize("shape", [(1, 12), (2, 4, 12), (3, 7, 12), (12,), (0, 12)])
@pytest.mark.parametrize(
    ("act", "threshold"), [("relu", 0.0), ("silu", 0.0), ("silu", 0.1), ("gelu", 0.05), ("relu", 0.2)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_masked_form_at_any_number_of_rows(shape, act, threshold, bias):
    block = gs.nn.GatedFeedForward(12, 40, act, bias, threshold=threshold)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(block(x), masked(block, x, ACT[act], threshold))
    torch.testing.assert_close(block(x), masked(block, x, ACT[act], threshold))  # with gradients: the dense form


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    block = gs.nn.GatedFeedForward(12, 40, "silu", dtype=dtype)
    x = torch.randn(3, 12).to(dtype)
    with torch.no_grad():
        wide = copy.deepcopy(block).double()
        found = block(x)
        assert found.dtype == dtype
        # Three products and an activation, each rounded once: sums of at most 40 terms of size below 1.
        assert float((found.double() - masked(wide, x.double(), F.silu, 0.0)).abs().max()) < 16 * torch.finfo(dtype).eps


def test_what_a_threshold_drops_bounds_the_error():
    block = gs.nn.GatedFeedForward(12, 40, "silu", threshold=0.1)
    x = torch.randn(5, 12)
    with torch.no_grad():
        dense = masked(block, x, F.silu, 0.0)
        closed = (F.silu(block.gate_proj(x)).abs() <= 0.1).float()
        bound = F.linear(0.1 * closed * block.up_proj(x).abs(), block.down_proj.weight.abs())
        assert bool(((block(x) - dense).abs() <= bound + 1e-5).all())
        assert bool((block(x) != dense).any())


def test_closed_neurons_are_never_read():
    block = gs.nn.GatedFeedForward(12, 40, "relu", reorder=True)
    x = torch.randn(2, 12)
    with torch.no_grad():
        expected = block(x)
        closed = (F.relu(block.gate_proj(x)) == 0).all(0)
        assert 0 < int(closed.sum()) < 40
        block.up_proj.weight[closed] = float("nan")
        block.down_proj.weight[:, closed] = float("inf")
        assert torch.equal(block(x), expected)
        kept = int((F.relu(block.gate_proj(x)) != 0).sum())
    assert block.density() == pytest.approx(kept / 80)


DECODERS = {
    "linear": lambda: gs.nn.ThresholdLinear(12, 40, threshold=0.5, reorder=True),
    "gated": lambda: gs.nn.GatedFeedForward(12, 40, "silu", threshold=0.1, reorder=True),
    "gated, stored by output": lambda: gs.nn.GatedFeedForward(12, 40, "relu", True),
}


@pytest.fixture
def speeds(monkeypatch):
    """Alternative -> seconds of a call of it, by a clock that only they move; what ran; layers of any size ask."""
    clock, seconds, ran = Clock(), {"dense": 1.0, "skip": 1.0}, []
    monkeypatch.setattr("gossamer.measure.clock.now", clock)
    monkeypatch.setattr(decoding, "LEAST", 0)
    for name, run in list(decoding._RUN.items()):

        def timed(*args, name=name, run=run):
            ran.append(name)
            clock.advance(seconds[name])
            return run(*args)

        monkeypatch.setitem(decoding._RUN, name, timed)
    return seconds, ran


@pytest.mark.parametrize(
    ("slow", "right", "compiled"), [("dense", "skip", False), ("skip", "dense", False), ("dense", "skip", True)]
)
@pytest.mark.parametrize("kind", DECODERS)
@torch.inference_mode()
def test_decoding_takes_the_faster_one_and_computes_the_same(kind, slow, right, compiled, speeds):
    seconds, ran = speeds
    seconds[slow] = 1.5
    layer, x = DECODERS[kind](), torch.randn(2, 1, 12)
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    expected = layer(torch.cat([x] * 5))[:2] if kind != "linear" else F.linear(
        F.hardshrink(x, 0.5), layer.weight, layer.bias
    )  # fmt: skip
    del ran[:]
    for _ in range(40):
        torch.testing.assert_close(call(x), expected)
    assert set(ran) == {"dense", "skip"} and set(ran[-20:]) == {right}
    assert f"decode: {right}, by a trial of" in layer.tuner.explain() and "of inputs nonzero" in layer.tuner.explain()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.tuner.key != layer.tuner.key and other.tuner.stats() == {}
        torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize(("kept", "right"), [(3, "skip"), (12, "dense")])
def test_decoding_is_decided_by_densities_alone_where_it_must_be_deterministic(kept, right, speeds):
    seconds, ran = speeds
    seconds[right] = 9.0
    layer, x = DECODERS["linear"](), torch.zeros(1, 12)
    x[:, :kept] = 1.0
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            assert len({layer(x).sum().item() for _ in range(20)}) == 1
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(ran) == {right}


@pytest.mark.parametrize("rows", [3, 30])
@pytest.mark.parametrize(("act", "threshold"), [("relu", 0.0), ("silu", 0.1)])
def test_gradients_are_those_of_the_masked_form(rows, act, threshold):
    block = gs.nn.GatedFeedForward(12, 40, act, True, threshold=threshold).double()
    x = torch.randn(rows, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, *block.parameters()]
    found = torch.autograd.grad(block(x).square().sum(), wanted)
    expected = torch.autograd.grad(masked(block, x, ACT[act], threshold).square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("act", ["relu", "silu", "gelu"])
def test_calibrate_closes_the_share_asked_for(act):
    block = gs.nn.GatedFeedForward(12, 40, act)
    x = torch.randn(4000, 12)
    threshold = block.calibrate(x.split(1000), 0.7)
    with torch.no_grad():
        assert threshold == block.threshold > 0
        assert abs(float((ACT[act](block.gate_proj(x)).abs() <= threshold).double().mean()) - 0.7) < 0.005
        for rows in x.split(8):
            block(rows)
    assert abs(block.density() - 0.3) < 0.005
    assert (block.calibrate(x, 0.2) == 0.0) == (act == "relu")  # half of ReLU's gates are closed as it is
    assert block.calibrate(x, 0.0) == 0.0


def test_from_dense_takes_the_very_parameters():
    dense = Dense(bias=True)
    x = torch.randn(3, 12)
    expected, parameters, names = dense(x), list(dense.parameters()), list(dense.state_dict())
    block = gs.nn.GatedFeedForward.from_dense(dense, reorder=True)
    assert all(one is other for one, other in zip(parameters, block.parameters(), strict=True))
    assert list(block.state_dict()) == names
    assert block.down_proj.weight.t().is_contiguous() and block.up_proj.weight.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)


def test_gated_replaces_what_it_proved_equal():
    class Scaled(Dense):
        def forward(self, x):
            return 2 * super().forward(x)

    class Hooked(Dense):
        pass

    model = nn.ModuleDict({"a": Dense(), "b": nn.Sequential(Dense().eval()), "c": Scaled(), "d": nn.Linear(3, 3)})
    model["e"] = Hooked()
    model["e"].register_forward_hook(lambda module, args, y: y)
    names, modes = list(model.state_dict()), model["b"][0].training
    blocks = gs.nn.gated(model, threshold=0.2)
    assert list(blocks) == ["a", "b.0"] and model["a"] is blocks["a"] and blocks["a"].threshold == 0.2
    assert model["b"][0].training is modes is False and type(model["c"]) is Scaled
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match=r"'c': its output is not down_proj.*'e': it has forward hooks"):
        gs.nn.gated(model)


def test_its_linears_may_skip_zeros_while_it_trains():
    block = gs.nn.GatedFeedForward(12, 40)
    x = torch.randn(30, 12)
    expected = block(x)
    assert gs.nn.skip_zeros(block, skip="input").converted
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(x[:2]), expected[:2])
    assert block.density() == block.density()  # the two rows went by the kernels that read open neurons


def test_a_block_in_two_places_stays_one():
    shared = Dense()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    blocks = gs.nn.gated(model)
    assert list(blocks) == ["a", "b.0"] and model["a"] is model["b"][0] is blocks["a"]


def test_an_adapter_around_a_part_takes_part():
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x):
            return self.base(x) + 1

    block = gs.nn.GatedFeedForward(12, 40)
    x = torch.randn(1, 12)
    with torch.no_grad():
        before = block(x)
        block.up_proj = Adapter(block.up_proj)
        assert not torch.allclose(block(x), before)
        torch.testing.assert_close(block(x), block(x.expand(9, 12))[:1])


def test_threshold_of_a_model_sets_the_gates():
    model = nn.Sequential(gs.nn.GatedFeedForward(12, 40, "silu"), nn.Linear(12, 12))
    model[0].threshold = 0.01
    x = torch.randn(2000, 12)
    with torch.no_grad():
        model(x[:5])  # counted before: not in the report's statistics
    report = gs.nn.threshold(model, x, 0.5, allocation="greedy", reorder=True)
    assert all(entry["density"] != entry["density"] for entry in report.stats().values())  # NaN: nothing decoded yet
    assert list(report.thresholds) == ["0", "0.gate_proj", "1"]
    assert {row.name: row.bytes for row in report.rows} == {"0": 2 * 1920, "0.gate_proj": 1920, "1": 576}
    assert type(model[0].up_proj) is type(model[0].down_proj) is nn.Linear
    with torch.no_grad():
        for rows in x.split(8):
            model(rows)
    for row in report.rows:
        assert abs(1 - row.sparsity - report.stats()[row.name]["density"]) < 0.02
    report.undo()
    assert model[0].threshold == 0.01 and type(model[0].gate_proj) is nn.Linear


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: gs.nn.GatedFeedForward(4, 8, "tanh"), ValueError, "activation must be one of .* got 'tanh'"),
    (lambda: gs.nn.GatedFeedForward(4, 8, threshold=-0.5), ValueError, "threshold must be finite .* got -0.5"),
    (lambda: gs.nn.GatedFeedForward(4, 8).calibrate([], 0.5), ValueError, "data is empty"),
    (lambda: gs.nn.GatedFeedForward(4, 8).calibrate(torch.randn(2, 4), 1), ValueError, "sparsity must be .* got 1"),
    (lambda: gs.nn.GatedFeedForward(4, 8).calibrate(torch.full((2, 4), torch.nan), 0.5), ValueError, "holds NaN"),
    (lambda: gs.nn.GatedFeedForward.from_dense(nn.Linear(2, 2)), ValueError, "gate_proj must be .* got NoneType"),
    (lambda: gs.nn.gated(nn.Linear(2, 2)), ValueError, "model has no block with gate_proj"),
    (lambda: gs.nn.gated(Dense()), ValueError, "it is the model itself: use GatedFeedForward.from_dense"),
])  # fmt: skip
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""gs.nn.threshold: thresholds are quantiles, decoding is the masked product, nothing else of the model changes."""

import copy
import io
import json
import math

import pytest
import torch
import torch.nn.functional as F
from threshold_models import Tower, snapshot
from torch import nn

import gossamer as gs
from gossamer.nn.threshold.magnitudes import Magnitudes


@pytest.mark.parametrize("draw", [
    lambda n: torch.randn(n),
    lambda n: 1e-6 * torch.randn(n).exp(),
    lambda n: torch.rand(n) - 0.5,
    lambda n: torch.randn(n).bfloat16(),
    lambda n: torch.randn(n).double() * 1e20,
], ids=["normal", "lognormal", "uniform", "bfloat16", "float64"])  # fmt: skip
@pytest.mark.parametrize("sparsity", [0.01, 0.25, 0.5, 0.9, 0.99])
def test_a_threshold_is_the_quantile(draw, sparsity):
    x = draw(40000)
    seen = Magnitudes()
    for part in x.split(7000):
        seen.add(part)
    threshold = seen.threshold(sparsity)
    share = float((x.abs().float() <= threshold).double().mean())
    assert seen.total == 40000
    assert seen.share(threshold) == share  # a count, not an estimate
    assert abs(share - sparsity) < 0.005
    assert threshold == pytest.approx(float(x.double().abs().quantile(sparsity)), rel=0.01)


def test_zeros_of_a_relu_count():
    x = torch.randn(10000).relu()
    seen = Magnitudes()
    seen.add(x)
    assert seen.threshold(0.3) == 0.0 and seen.share(0.0) == float((x == 0).double().mean())
    assert abs(seen.share(seen.threshold(0.7)) - 0.7) < 0.005


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_decoding_is_the_masked_product(rows, bias, dtype, reorder):
    layer = gs.nn.ThresholdLinear(70, 45, bias, threshold=0.8, reorder=reorder, dtype=dtype)
    x = torch.randn(rows, 1, 70).to(dtype)
    x[0, 0, :3] = torch.tensor([0.8, -0.8, 0.0])
    with torch.no_grad():
        y = layer(x)
    limit = 0.8 if dtype == torch.float64 else float(torch.tensor(0.8, dtype=torch.float32))
    stays = x.double().abs() > limit
    masked, weight = x.double() * stays, layer.weight.double()
    exact = F.linear(masked, weight, layer.bias.double() if bias else None)
    size = F.linear(masked.abs(), weight.abs(), layer.bias.double().abs() if bias else None)
    eps = torch.finfo(dtype).eps
    assert y.shape == (rows, 1, 45) and y.dtype == dtype
    assert bool(((y.double() - exact).abs() <= 80 * eps * size).all())
    if dtype != torch.float64 and reorder:
        assert layer.density() == pytest.approx(float(stays.double().mean()))


def test_dropped_inputs_never_meet_their_weights_and_nan_is_kept():
    layer = gs.nn.ThresholdLinear(6, 3, False, threshold=1.0, reorder=True)
    with torch.no_grad():
        layer.weight[:, 2] = float("inf")
        y = layer(torch.tensor([[2.0, -2.0, 1.0, 0.0, -0.0, 3.0]]))
        assert y.isfinite().all()
        assert layer(torch.tensor([[2.0, float("nan"), 1.0, 0.0, 0.0, 0.0]])).isnan().all()


def test_prefill():
    x = torch.randn(3, 5, 16)
    dense = nn.Linear(16, 4)
    layers = {}
    for prefill in ("dense", "threshold"):
        layers[prefill] = gs.nn.ThresholdLinear(16, 4, threshold=0.5, prefill=prefill)
        layers[prefill].load_state_dict(dense.state_dict())
    torch.testing.assert_close(layers["dense"](x), dense(x))
    torch.testing.assert_close(layers["threshold"](x), dense(x * (x.abs() > 0.5)))
    with torch.no_grad():  # one row at a time is what all rows together are
        rows = torch.stack([layers["threshold"](row) for row in x.view(15, 16)])
    torch.testing.assert_close(rows.view(3, 5, 4), layers["threshold"](x))
    assert layers["dense"](x[:0]).shape == (0, 5, 4)
    rows = x.view(15, 16)
    assert torch.allclose(layers["dense"](rows[:9]), dense(rows[:9])) and layers["dense"](rows[:8]).shape == (8, 4)
    assert not torch.allclose(layers["dense"](rows[:8]), dense(rows[:8]))  # eight are few


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_gradients_are_those_of_the_masked_form(rows, threshold):
    layer = gs.nn.ThresholdLinear(9, 5, threshold=threshold, prefill="threshold")
    x = torch.randn(rows, 9).index_fill(1, torch.tensor(4), 0.0)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = torch.autograd.grad(layer(a).square().sum(), [a, *layer.parameters()])
    mask = (x.abs() > threshold).float() if threshold else torch.ones_like(x)  # at 0 it is nn.Linear
    expected = torch.autograd.grad(
        F.linear(b * mask, layer.weight, layer.bias).square().sum(), [b, *layer.parameters()]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_model_keeps_its_parameters_and_its_state_dict():
    model = Tower().train()
    model.layers[1].eval()
    before, parameters = snapshot(model), list(model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(64, 32)
    expected = model(x)
    report = gs.nn.threshold(model, x, 0.4, reorder=True)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(before["state"])
    assert [module.training for module in model.modules()] == [mode for *_, mode in before["classes"]]
    for layer in model.layers:
        for linear in (layer.up, layer.down):
            assert type(linear) is gs.nn.ThresholdLinear
            assert linear.weight.t().is_contiguous()
            assert linear.weight.untyped_storage().nbytes() == linear.weight.numel() * 4  # one copy
    torch.testing.assert_close(model(x), expected)  # many rows: dense

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    dense = Tower()
    dense.load_state_dict(state)
    torch.testing.assert_close(dense(x), expected)
    other = copy.deepcopy(model)
    other.load_state_dict(Tower().state_dict(), assign=True)  # row-major weights come in
    with torch.no_grad():
        other(x[:1])
    assert other.layers[0].up.weight.t().is_contiguous()

    model(x).sum().backward()
    optimizer.step()
    report.undo()
    report.undo()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(before["state"][name][0]))
    assert snapshot(model) == before
    assert not list(model.buffers()) and "threshold" not in vars(model.head)


def test_thresholds_are_plain_numbers_that_go_into_another_model():
    model, x = Tower(), torch.randn(64, 32)
    other = copy.deepcopy(model)
    report = gs.nn.threshold(model, x, 0.5)
    again = gs.nn.apply_thresholds(other, json.loads(json.dumps(report.thresholds)))
    assert again.thresholds == report.thresholds and math.isnan(again.sparsity)
    with torch.no_grad():
        assert torch.equal(other(x[:3]), model(x[:3]))
    assert "?" in str(again) and "50.0%" in str(report)


def test_realised_sparsity_is_the_requested_one():
    """Deep in a model whose earlier layers leave inputs out as well, on data that was not seen."""
    model = Tower(depth=6)
    x = torch.randn(1200, 32)
    report = gs.nn.threshold(model, [x[:300], x[300:600]], 0.6, reorder=True)
    with torch.no_grad():
        for row in x[600:].split(4):
            model(row)
    stats = report.stats()
    assert set(stats) == set(report.thresholds) and len(stats) == 13
    for row in report.rows:
        assert abs(row.sparsity - 0.6) < 0.005
        assert abs(stats[row.name]["density"] - 0.4) < 0.01
    assert report.sparsity == pytest.approx(0.6, abs=0.005) and report.saved == report.sparsity * report.bytes


def block_error(model: Tower, at: int, inputs: torch.Tensor, thresholds: dict[str, float]) -> float:
    """How far one block's output moves on these inputs, by masks written here."""
    layer, name = model.layers[at], f"layers.{at}"

    def masked(x, which):
        return x * (x.abs() > thresholds[f"{name}.{which}"])

    inner = F.silu(F.linear(masked(F.layer_norm(inputs, inputs.shape[-1:]), "up"), layer.up.weight, layer.up.bias))
    y = inputs + F.linear(masked(inner, "down"), layer.down.weight, layer.down.bias)
    return float((y - layer(inputs)).square().sum())


def test_greedy_saves_the_same_bytes_at_less_error():
    model, x = Tower(depth=2), torch.randn(256, 32)
    with torch.no_grad():
        model.layers[1].up.weight *= 0.05  # beside its bias the inputs of this one hardly matter
    thresholds, shares = {}, {}
    for allocation in ("uniform", "greedy"):
        copied = copy.deepcopy(model)
        report = gs.nn.threshold(copied, x, 0.5, allocation=allocation, passes=1)
        thresholds[allocation] = report.thresholds
        shares[allocation] = {row.name: (row.sparsity, row.bytes) for row in report.rows}
    with torch.no_grad():
        inputs = x
        for at in range(2):
            error = {key: block_error(model, at, inputs, values) for key, values in thresholds.items()}
            assert error["greedy"] <= error["uniform"] * 1.001
            rows = [shares["greedy"][f"layers.{at}.{which}"] for which in ("up", "down")]
            assert sum(share * size for share, size in rows) / sum(size for _, size in rows) == pytest.approx(
                0.5, abs=0.01
            )
            inputs = model.layers[at](inputs)
    assert error["greedy"] < 0.8 * error["uniform"]
    assert shares["greedy"]["layers.1.up"][0] > 0.7 > 0.3 > shares["greedy"]["layers.1.down"][0]
    assert shares["greedy"]["head"][0] == pytest.approx(0.5, abs=0.01)


def test_greedy_is_never_worse_than_uniform():
    """One step as large as the whole: all of the sparsity falls on one of two equals."""
    model, x = Tower(depth=1), torch.randn(256, 32)
    found = {
        allocation: gs.nn.threshold(copy.deepcopy(model), x, 0.4, allocation=allocation, step=1.0, passes=1).thresholds
        for allocation in ("uniform", "greedy")
    }
    assert found["greedy"] == found["uniform"]


def test_greedy_replays_blocks_whose_caches_grow():
    class Cache:
        def __init__(self):
            self.seen = []

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, *, cache):
            cache.seen.append(x)
            return (self.b(self.a(x).relu()) + sum(cache.seen), None)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, x, cache):
            for layer in self.layers:
                x, _ = layer(x, cache=cache)
            return x

    cache = Cache()
    gs.nn.threshold(Model(), [(torch.randn(20, 8), cache)], 0.5, allocation="greedy", passes=1)
    assert len(cache.seen) == 2  # one forward of two layers: replays had copies


def test_what_stays_dense_is_listed_with_a_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            x = self.embed(ids)
            return self.head(self.used(self.attention(x, x, x)[0]))

    model = Mixed()
    report = gs.nn.threshold(model, torch.randint(11, (2, 12)), 0.5)
    assert [row.name for row in report.rows] == ["used"]
    assert {name: why.split()[0] for name, why in report.left.items()} == {
        "attention.out_proj": "a", "unused": "the", "head": "its"
    }  # fmt: skip
    assert "embed" in report.left["head"] and type(model.unused) is nn.Linear
    assert model.embed.weight.is_contiguous()
    assert "unused stays dense: the data never reached it" in str(report)


@pytest.mark.parametrize(("layers", "names"), [
    (["head"], ["head"]),
    (iter(["layers.*.up"]), ["layers.0.up", "layers.1.up"]),
    (lambda name, module: module.in_features == 96, ["layers.0.down", "layers.1.down"]),
])  # fmt: skip
def test_layers(layers, names):
    model = Tower(depth=2)
    report = gs.nn.threshold(model, torch.randn(32, 32), 0.5, layers=layers)
    assert list(report.thresholds) == names
    assert [name for name, module in model.named_modules() if type(module) is gs.nn.ThresholdLinear] == names


def test_again_on_a_model_that_has_thresholds():
    model, x = Tower(depth=1), torch.randn(400, 32)
    first = gs.nn.threshold(model, x, 0.7)
    expected = gs.nn.threshold(copy.deepcopy(Tower(depth=1)), x, 0.7)
    second = gs.nn.threshold(model, x.split(8), 0.3)  # few rows: still, calibration sees the dense model
    fresh = copy.deepcopy(model)
    assert len(expected.rows) == len(second.rows)
    second.undo()
    assert {name: model.get_submodule(name).threshold for name in first.thresholds} == first.thresholds
    first.undo()
    assert gs.nn.threshold(model, x, 0.3).thresholds == pytest.approx(second.thresholds, rel=1e-2)
    assert type(fresh.head) is gs.nn.ThresholdLinear


def test_forward_mode_derivatives_are_those_of_the_dense_form():
    layer, x = gs.nn.ThresholdLinear(6, 4, threshold=0.5), torch.randn(2, 6)
    with torch.no_grad():
        _, tangent = torch.func.jvp(layer, (x,), (torch.ones(2, 6),))
        torch.testing.assert_close(tangent, F.linear((x.abs() > 0.5).float(), layer.weight))


def test_what_leaves_the_process_holds_torchs_operators():
    model = nn.Sequential(nn.Linear(16, 32), gs.nn.GatedFeedForward(32, 24, "silu"))
    gs.nn.threshold(model, torch.randn(64, 16), 0.5, prefill="threshold")
    x = torch.randn(20, 16)
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=((rows, None),))
    assert not any("gossamer" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x[:3]), model(x[:3]))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_compiles_whole():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    gs.nn.threshold(model, torch.randn(64, 16), 0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        x = torch.randn(2, 16)
        torch.testing.assert_close(compiled(x), model(x))


def test_a_llama_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    names, ids = list(model.state_dict()), torch.randint(64, (2, 12))
    with torch.no_grad():
        dense = model(ids).logits
        assert list(gs.nn.gated(model, reorder=True)) == ["model.layers.0.mlp", "model.layers.1.mlp"]
        torch.testing.assert_close(model(ids).logits, dense)
    how = {"allocation": "greedy", "prefill": "threshold", "step": 0.25, "reorder": True}
    report = gs.nn.threshold(model, {"input_ids": ids}, 0.5, **how)
    assert len(report.rows) == 2 * (4 + 1 + 1) and list(report.left) == ["lm_head"]
    assert list(model.state_dict()) == names
    with torch.no_grad():
        whole, cache, steps = model(ids).logits, None, []
        for at in range(12):
            out = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)  # safetensors take no other memory order: it has to be undone on the way
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, whole)  # tests/nn/test_thresholds_travel.py has the law
    assert not torch.allclose(whole, dense, rtol=1e-3, atol=1e-3)  # and something was left out
    for name, entry in report.stats().items():
        assert abs(entry["density"] - entry["expected"]) < 0.05, name

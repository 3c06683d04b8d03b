"""Linear layers while an engine decodes: few rows go through our product, the model is left as it was."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from serving_decoders import decoder, prompts
from torch import nn

from gossamer.ops.few_rows import FewRows
from gossamer.serving import Engine, Sampling
from gossamer.serving.stepping import linears
from gossamer.testing import assert_same_bits

TEXTS = prompts(40, 7, 23)
SAMPLING = Sampling(max_tokens=5)


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(linears, "LEAST", 0)


@pytest.fixture
def ran(monkeypatch):
    """Rows of each product that was ours."""
    rows, compute = [], FewRows.compute

    def counted(x, weight, bias):
        rows.append(len(x))
        return compute(x, weight, bias)

    monkeypatch.setattr(FewRows, "compute", staticmethod(counted))
    return rows


def generated(model):
    engine = Engine(model, end=[])
    jobs = [engine.add(text, SAMPLING) for text in TEXTS]
    while engine.busy:
        engine.step()
    return [job.tokens for job in jobs]


def linears_of(model):
    return [each for each in model.modules() if type(each) is nn.Linear]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "phi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_are_those_of_the_model(family, dtype, ran, monkeypatch):
    model = copy.deepcopy(decoder(family)).to(dtype)
    found = generated(model)
    layers = len(linears_of(model))
    # Three texts are decoded at once, after the last layer of all has given each its first token.
    assert ran.count(3) == (SAMPLING.max_tokens - 1) * layers + 1
    assert max(ran) <= 28
    monkeypatch.setattr(linears, "LEAST", 1 << 60)
    ran.clear()
    torchs = generated(model)
    assert ran == []
    assert dtype != torch.float32 or torchs == found  # in bfloat16 two tokens can be as likely


def test_the_model_is_left_as_it_was(ran):
    model = copy.deepcopy(decoder("llama"))
    first, second, *_ = linears_of(model)
    seen = []
    second.register_forward_hook(lambda module, args, out: seen.append(out.shape))

    def mine(x):
        return nn.functional.linear(x, first.weight)

    first.forward = mine
    before = [dict(each.__dict__) for each in model.modules()]
    found = generated(model)
    after = [dict(each.__dict__) for each in model.modules()]
    assert [list(each) for each in after] == [list(each) for each in before]
    assert first.forward is mine
    assert len(seen) == 1 + (SAMPLING.max_tokens - 1)  # its hook ran in every pass
    assert found == generated(decoder("llama"))


def test_a_pass_that_fails_leaves_it_too():
    model = copy.deepcopy(decoder("llama"))
    last = linears_of(model)[-1]
    last.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generated(model)
    assert not any("forward" in each.__dict__ for each in model.modules())


def test_what_the_weight_holds_now_is_used(ran):
    model = copy.deepcopy(decoder("llama"))
    engine = Engine(model, end=[])
    engine.add(TEXTS[0], Sampling(max_tokens=4))
    engine.step()
    for layer in linears_of(model):
        layer.weight.data.zero_()
    job = engine.add(TEXTS[1], Sampling(max_tokens=4))
    while engine.busy:
        engine.step()
    assert job.tokens == [0] * 4  # all logits are zero


@pytest.mark.parametrize("how", ["autocast", "a mode", "gradients", "compiled"])
def test_where_somebody_looks_torch_multiplies(how, ran):
    model = copy.deepcopy(decoder("llama"))
    if how == "compiled":
        model.model.layers[0].mlp.compile(backend="eager")
    contexts = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "a mode": torch.device("cpu"),
        "gradients": torch.enable_grad(),
        "compiled": torch.no_grad(),
    }
    with contexts[how], linears.few_rows(model):
        assert not any("forward" in each.__dict__ for each in model.modules())
    with torch.no_grad(), linears.few_rows(decoder("llama")):
        assert all("forward" in each.__dict__ for each in linears_of(decoder("llama")))


@pytest.mark.parametrize("dtype, few", [(torch.float32, 28), (torch.bfloat16, 8)], ids=str)
def test_many_rows_and_other_inputs_are_torchs(dtype, few, ran):
    layer = nn.Linear(24, 10, dtype=dtype)
    with torch.no_grad(), linears.few_rows(layer):
        for rows in (1, few, few + 1):
            x = torch.randn(1, rows, 24, dtype=dtype)
            y = layer(x)
            torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias))
        assert layer(torch.randn(0, 24, dtype=dtype)).shape == (0, 10)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.randn(2, 12, dtype=dtype))
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.randn(2, 24, dtype=torch.float64))
    assert ran == [1, few]


def test_another_thread_that_shares_a_layer_gets_its_gradient(ran):
    layer = nn.Linear(24, 10)
    with torch.no_grad(), linears.few_rows(layer), torch.enable_grad():
        layer(torch.randn(2, 24)).sum().backward()
    assert layer.weight.grad is not None
    assert ran == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_made_meanwhile_has_weights_of_its_own(copied):
    layer = nn.Linear(24, 10)
    with torch.no_grad(), linears.few_rows(layer):
        other = copied(layer)
    other.weight.data.zero_()
    with torch.no_grad():
        assert torch.equal(other(torch.randn(2, 24)), other.bias.expand(2, 10))
        assert not torch.equal(layer(torch.randn(2, 24)), layer.bias.expand(2, 10))


def test_a_row_is_the_same_whatever_the_others():
    layer = nn.Linear(100, 30)
    x = torch.randn(28, 100)
    with torch.no_grad(), linears.few_rows(layer):
        for rows in (1, 5, 28):
            assert_same_bits(layer(x[:rows]), layer(x)[:rows])

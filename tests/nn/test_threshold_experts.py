"""Law: fused experts of transformers leave out small activations like linears do, each expert for its own tokens."""

import copy

import pytest
import torch
from test_convert_experts import FAMILIES, model_of

import gossamer as gs

EXPERTS = "model.layers.1.mlp.experts"


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_are_many_tokens_that_drop_the_same(family, dtype):
    """Every expert reads what is above the threshold: as the dense products of what stays, for any number of rows."""
    model = model_of(family).to(dtype)
    keys, modules, parameters = list(model.state_dict()), dict(model.named_modules()), dict(model.named_parameters())
    strides = {name: each.stride() for name, each in parameters.items()}
    ids = torch.randint(50, (2, 16))
    before = logits(model, ids)
    report = gs.nn.threshold(model, ids, 0.5, reorder=True, prefill="threshold")
    named = {name for name in report.thresholds if ".experts." in name}
    assert named == {f"model.layers.{layer}.mlp.experts.{point}_input" for layer in (0, 1) for point in ("up", "down")}
    assert all(abs(row.sparsity - 0.5) < 0.02 for row in report.rows) and all(row.skippable for row in report.rows)
    assert list(model.state_dict()) == keys
    experts = model.get_submodule(EXPERTS)
    x = torch.randn(12, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    chosen = torch.tensor([[0, 1], [2, 3], [1, 3], [0, 2]] * 3)
    gates = torch.rand(12, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        together = experts(x, chosen, gates)
        alone = torch.cat([experts(*(each[at : at + 3] for each in (x, chosen, gates))) for at in range(0, 12, 3)])
    assert not torch.equal(alone, torch.zeros_like(alone))
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(alone, together, **near)
    assert 0.3 < report.stats()[f"{EXPERTS}.up_input"]["density"] < 1.0
    assert not torch.allclose(logits(model, ids), before)
    report.undo()
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(each is parameters[name] and each.stride() == strides[name] for name, each in model.named_parameters())
    assert torch.equal(logits(model, ids), before)


def test_they_are_chosen_by_name_saved_and_taken_out(tmp_path):
    model, ids = model_of("Mixtral"), torch.randint(50, (2, 16))
    before = logits(model, ids[:1, :1])
    with pytest.raises(ValueError, match="the model does not take batch 0"):
        gs.nn.threshold(model, {"nothing": ids}, 0.5)
    assert type(model.get_submodule(EXPERTS)).__name__ == "MixtralExperts"
    report = gs.nn.threshold(model, ids, 0.5, layers=["*layers.1.mlp.experts.*"], reorder=True)
    assert list(report.thresholds) == [f"{EXPERTS}.up_input", f"{EXPERTS}.down_input"]
    assert type(model.model.layers[0].mlp.experts).__name__ == "MixtralExperts"
    expected = logits(model, ids[:1, :1])
    torch.testing.assert_close(logits(copy.deepcopy(model), ids[:1, :1]), expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, ids[:1, :1]), expected, rtol=1e-4, atol=1e-5)
    assert gs.nn.remove_thresholds(loaded) == tuple(report.thresholds)
    torch.testing.assert_close(logits(loaded, ids[:1, :1]), before, rtol=1e-4, atol=1e-5)
    fresh = model_of("Mixtral")
    again = gs.nn.apply_thresholds(fresh, report.thresholds, reorder=True)
    torch.testing.assert_close(logits(fresh, ids[:1, :1]), expected, rtol=1e-4, atol=1e-5)
    again.undo()
    assert type(fresh.get_submodule(EXPERTS)).__name__ == "MixtralExperts"
    with pytest.raises(ValueError, match="layers names 'nothing'"):
        gs.nn.apply_thresholds(fresh, {f"{EXPERTS}.up_input": 0.5, "nothing": 0.5})
    assert type(fresh.get_submodule(EXPERTS)).__name__ == "MixtralExperts"

"""Law: thresholds travel with a model of transformers that is saved, or loading says that they are missing."""

import copy
import subprocess
import sys

import pytest
import torch

import gossamer as gs

transformers = pytest.importorskip("transformers")
TOKENS = torch.tensor([[3], [5]])


def llama(**more):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=50, **more)
    return transformers.LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture
def saved(tmp_path):
    """A folder with a model that has thresholds, and what that puts out."""
    model = llama()
    report = gs.nn.threshold(model, torch.randint(50, (4, 16)), 0.5, reorder=True)
    model.save_pretrained(tmp_path)
    return tmp_path, report, logits(model)


def test_loading_puts_them_back(saved, tmp_path):
    folder, report, expected = saved
    for generation in range(2):  # what was loaded can be saved again
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(logits(model), expected)
        layer = model.model.layers[1].mlp.down_proj
        assert type(layer) is gs.nn.ThresholdLinear and layer.reorder and layer.weight.t().is_contiguous()
        assert not model.is_quantized and model.hf_quantizer is None and not hasattr(model.config, "_is_quantized")
        folder = tmp_path / str(generation)
        model.save_pretrained(folder)
    assert gs.nn.restore_thresholds(model).thresholds == report.thresholds
    assert gs.nn.remove_thresholds(model) == tuple(report.thresholds)
    assert torch.equal(logits(model), logits(llama())) and type(layer) is torch.nn.Linear
    model.save_pretrained(folder)
    assert "gossamer" not in (folder / "config.json").read_text()


def test_with_a_head_and_without_one(saved):
    folder, report, _ = saved
    inner = transformers.AutoModel.from_pretrained(folder)
    named = [name for name, module in inner.named_modules() if isinstance(module, gs.nn.ThresholdLinear)]
    assert [f"model.{name}" for name in named] == list(report.thresholds)
    inner.save_pretrained(folder / "inner")
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder / "inner")
    assert isinstance(whole.model.layers[0].self_attn.q_proj, gs.nn.ThresholdLinear)


def test_gated_blocks_come_back(tmp_path):
    model = llama()
    blocks = gs.nn.gated(model, reorder=True)
    blocks["model.layers.0.mlp"].threshold = 0.0625
    first = copy.deepcopy(model.config.quantization_config)
    assert first["layers"]["model.layers.0.mlp"]["threshold"] == 0.0625
    gs.nn.threshold(model, torch.randint(50, (4, 16)), 0.5).undo()
    assert model.config.quantization_config == first and blocks["model.layers.0.mlp"].threshold == 0.0625
    gs.nn.threshold(model, torch.randint(50, (4, 16)), 0.5, reorder=True, prefill="threshold")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded.model.layers[0].mlp, gs.nn.GatedFeedForward)
    assert loaded.model.layers[0].self_attn.q_proj.prefill == "threshold"
    assert torch.equal(logits(loaded), logits(model))


def test_the_config_keeps_up():
    model = llama()
    report = gs.nn.threshold(model, torch.randint(50, (4, 16)), 0.5)
    name = "model.layers.0.mlp.up_proj"
    other = copy.deepcopy(model)
    other.get_submodule(name).threshold = 0.125

    def entry(model):
        return model.config.to_dict()["quantization_config"]["layers"][name]["threshold"]

    assert entry(other) == 0.125 and entry(model) == report.thresholds[name]
    again = gs.nn.apply_thresholds(model, {name: 0.25})
    assert entry(model) == 0.25 and len(model.config.quantization_config["layers"]) == len(report.rows)
    again.undo()
    assert entry(model) == model.get_submodule(name).threshold == report.thresholds[name]
    report.undo()
    assert not hasattr(model.config, "quantization_config")


def test_a_config_that_is_taken_is_left_and_said(caplog):
    model = llama(quantization_config={"quant_method": "other"})
    report = gs.nn.threshold(model, torch.randint(50, (4, 16)), 0.5)
    assert "save_pretrained will not save" in caplog.text and report.unsaved in str(report)
    report.undo()
    assert model.config.quantization_config == {"quant_method": "other"}


def test_what_a_model_lacks_is_said(saved, caplog):
    folder, report, _ = saved
    model = llama(quantization_config=transformers.AutoConfig.from_pretrained(folder).quantization_config)
    del model.model.layers[1:]
    restored = gs.nn.restore_thresholds(model)
    assert {*restored.left, *restored.thresholds} == {*report.thresholds}
    assert all(name.startswith("model.layers.1.") and name in caplog.text for name in restored.left)
    with pytest.raises(ValueError, match="no config with thresholds"):
        gs.nn.restore_thresholds(torch.nn.Linear(2, 2))
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="none of the modules with thresholds"):
        gs.nn.restore_thresholds(model)


def test_plain_states_are_those_of_the_dense_model(saved, tmp_path):
    folder, _, expected = saved
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.load_state_dict(llama().state_dict(), strict=True)
    llama().load_state_dict(model.state_dict(), strict=True)
    torch.save(model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(logits(whole), expected)


_EITHER = """
import os, sys, torch
torch.set_num_threads(1)
child = os.fork()  # both orders are those of a process that has imported torch alone
if child == 0:
    import gossamer.serving
    assert "transformers" not in sys.modules
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    assert "gossamer" in ALL_EXPERTS_FUNCTIONS.valid_keys() and "gossamer" in ALL_ATTENTION_FUNCTIONS.valid_keys()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "gossamer" not in sys.modules and type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
import gossamer as gs
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
assert "gossamer" in ALL_EXPERTS_FUNCTIONS.valid_keys() and "gossamer" in ALL_ATTENTION_FUNCTIONS.valid_keys()
gs.nn.restore_thresholds(model)
with torch.no_grad():
    print(model(torch.tensor([[3], [5]])).logits.double().sum().item())
"""


def test_names_are_known_whichever_is_imported_first(saved):
    """Without gossamer transformers warns; and gossamer that is imported later makes itself known then."""
    folder, _, expected = saved
    run = subprocess.run([sys.executable, "-c", _EITHER, str(folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Unknown quantization type, got gossamer_thresholds" in run.stderr
    assert float(run.stdout) == pytest.approx(expected.double().sum().item(), rel=1e-5)

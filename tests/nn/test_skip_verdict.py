"""Law: what skip_zeros promises rests on zeros that were met, and says what it does not know."""

import pytest
import torch
from torch import nn

import gossamer as gs


def network(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), activation, nn.Linear(256, 64))


def test_nothing_is_known_before_the_model_has_run():
    net = network(nn.GELU())
    report = gs.nn.skip_zeros(net)
    assert report.zeros == {} and "not known before the model has run" in report.summary()
    with torch.no_grad():
        net(torch.randn(32, 64))
    assert "no layer of the 2 that ran reads more than 0% zeros, so nothing is gained here" in report.summary()
    assert "gradients were not seen" in report.summary()
    net(torch.randn(32, 64)).sum().backward()
    assert "gradients were not seen" not in report.summary()


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"input": x}])
def test_an_example_tells_at_once_and_changes_nothing(form):
    net, x = network(nn.ReLU()).train(), torch.randn(32, 64)
    with torch.no_grad():
        share = float((net[:2](x) == 0).double().mean())
    report = gs.nn.skip_zeros(net, example_inputs=form(x))
    assert report.zeros == {"0": 0.0, "2": pytest.approx(share)} and net.training
    assert report.summary().endswith("1 of the 2 that ran meet zeros; which of them skip is tried on later calls")
    assert not net[0]._forward_pre_hooks and report.fused == ("1",)
    assert f"{share:.0%}" in str(report)


def test_an_example_that_does_not_fit_changes_nothing():
    net = network(nn.ReLU())
    with pytest.raises(RuntimeError):
        gs.nn.skip_zeros(net, example_inputs=torch.randn(32, 63))
    assert type(net[0]) is nn.Linear and not net[0]._forward_pre_hooks
    with pytest.raises(TypeError, match="example_inputs must be"):
        gs.nn.skip_zeros(net, example_inputs=3)


def test_half_of_an_opt_is_zero_and_the_reason_for_dense_is_given():
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        hidden_size=64, ffn_dim=256, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, word_embed_proj_dim=64
    )
    model = transformers.OPTForCausalLM(config).eval()
    report = gs.nn.skip_zeros(model, example_inputs={"input_ids": torch.randint(50, (1, 16))})
    meet = [name for name, share in report.zeros.items() if share > 0.05]
    assert meet == [f"model.decoder.layers.{layer}.fc2" for layer in range(2)]
    assert all(0.4 < report.zeros[name] < 0.6 for name in meet)
    for name in meet:  # as a clock would have it
        for seconds, path in ((1.0, "dense"), (3.0, "skip")) * 20:
            site = model.get_submodule(name).site
            site.choose("forward", ("dense", "skip"), "a shape")
            site.observe("forward", path, seconds, {"x": 0.5})
    told = str(report).partition("dense in spite of zeros")[2]
    assert all(name in told for name in meet) and "skip takes" in told
    assert "2 of the 13 that ran meet zeros, 0 of them skip now" in report.summary()


def test_a_llama_has_none():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=50))
    summary = gs.nn.skip_zeros(model, example_inputs=torch.randint(50, (1, 8))).summary()
    assert summary.startswith("8 of 8 layers can skip zeros; no layer of the 8 that ran reads more than 0% zeros")
    assert "nothing is gained here" in summary and "gs.nn.threshold may" in summary

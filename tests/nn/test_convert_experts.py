"""Law: fused experts of transformers become gs.nn.Experts on the same parameters: same outputs, gradients and keys."""

import copy

import pytest
import torch

import gossamer as gs

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 0,
        "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
    },
}  # fmt: skip


def model_of(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family]))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.set_experts_implementation("eager")
    return model


def outcome(model):
    ids = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    logits = model(ids).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_gradients_and_keys(family, tmp_path):
    model = model_of(family)
    before, parameters, keys = outcome(model), dict(model.named_parameters()), list(model.state_dict())
    modules = dict(model.named_modules())
    report = gs.nn.convert_experts(model)
    assert len(report.converted) == 2 and not report.left
    assert all(isinstance(model.get_submodule(name), gs.nn.Experts) for name in report.converted)
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    for model_ in (model, copy.deepcopy(model)):
        logits, grads = outcome(model_)
        torch.testing.assert_close(logits, before[0], rtol=1e-4, atol=1e-5)
        assert grads.keys() == before[1].keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, before[1][name], rtol=1e-3, atol=1e-4, msg=name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, experts_implementation="eager").eval()
    torch.testing.assert_close(outcome(again)[0], before[0])
    report.undo()
    assert all(module is modules[name] for name, module in model.named_modules())
    assert torch.equal(outcome(model)[0], before[0])


def test_what_computes_something_else_is_left_with_the_reason():
    config = transformers.GptOssConfig(**(SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}))
    model = transformers.GptOssForCausalLM(config)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts.*4 experts in one GptOssExperts.*it has a bias"):
        gs.nn.convert_experts(model)
    with pytest.raises(ValueError, match=r"module \(Linear\) cannot become Experts: it has no gate_up_proj"):
        gs.nn.Experts.from_module(torch.nn.Linear(2, 2))
    model = model_of("Mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.register_forward_hook(lambda *args: None)
    report = gs.nn.convert_experts(model)
    assert list(report.left) == ["model.layers.0.mlp.experts"] and "hooks" in str(report)
    made = gs.nn.Experts.from_module(model_of("Mixtral").model.layers[0].mlp.experts)
    with pytest.raises(ValueError, match="ids must be given"):
        made(torch.randn(3, 32))


def test_reports_see_fused_experts():
    config = transformers.GptOssConfig(**(SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}))
    model = transformers.GptOssForCausalLM(config).eval()
    report = gs.nn.threshold(model, torch.randint(50, (2, 9)), 0.5)
    told = "4 experts in one GptOssExperts, 18,944 parameters: it has a bias"
    assert told in report.left["model.layers.0.mlp.experts"] and told in str(report)
    model = model_of("Mixtral")
    told = "4 experts in one MixtralExperts, 18,432 parameters"
    skip = gs.nn.skip_zeros(model)
    assert told in skip.left["model.layers.1.mlp.experts"] and told in str(skip)
    assert "36,864 of" in skip.summary()

"""Law: experts_implementation="gossamer" computes what transformers' own "eager" does, in every family of experts."""

import copy

import pytest
import torch
from moe_cases import assert_as_exact, both_ways, check, experts_of, families, routing, width_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

import gossamer as gs

# One of each kind: plain, weights lying the other way, biases and a gate of its own, no gate, a norm behind.
KINDS = ["mixtral", "aria", "gpt_oss", "nemotron_h", "muse_spark"]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip
MODELS = {
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "deepseek_v3": {
        "n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "deepseek_v2": {
        "n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "q_lora_rank": 16,
        "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "granitemoe": {"num_local_experts": 4},
}  # fmt: skip
FAST = ("mixtral", "gpt_oss", "deepseek_v3")


def model_of(family, name="gossamer"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL | MODELS[family])
    return AutoModelForCausalLM.from_config(config, experts_implementation=name, attn_implementation="eager").eval()


def experts(family="mixtral"):
    return next(experts_of(family))


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("tokens, k", [(13, 2), (1, 1), (40, 3), (0, 2)])
def test_kinds_of_experts(family, tokens, k):
    for module in experts_of(family):
        check(module, tokens, k=k) if tokens else none_at_all(module)


def none_at_all(module):
    x = torch.zeros(0, width_of(module))
    y, *gradients = both_ways(module, "gossamer", x, *routing(0, 4))
    assert y.shape == x.shape and not any(gradient.any() for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family(family):
    found = list(experts_of(family))
    assert found
    for module in found:
        check(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_dtypes(family, dtype):
    check(experts(family), dtype=dtype)


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in MODELS])
def test_whole_models(family):
    model, ids = model_of(family), torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    results = {}
    for name in ("gossamer", "eager"):
        model.set_experts_implementation(name)
        out = model(ids, labels=ids)
        results[name] = [out.logits.detach(), *torch.autograd.grad(out.loss, [*model.parameters()], allow_unused=True)]
        results[name] = [x for x in results[name] if x is not None]
        results[f"tokens {name}"] = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    wide = copy.deepcopy(model).double()
    out = wide(ids, labels=ids)
    oracle = [out.logits.detach(), *torch.autograd.grad(out.loss, [*wide.parameters()], allow_unused=True)]
    assert_as_exact(results["gossamer"], results["eager"], [x for x in oracle if x is not None])
    assert torch.equal(results["tokens gossamer"], results["tokens eager"])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "muse_spark"])
def test_experts_on_other_ranks(family):
    """Their number stands for an expert that another rank has: as one of weight zero, whose weight has no gradient."""
    module = experts(family)
    ids, weights = routing(13, 4)
    ids[3], ids[5, 0] = 4, 4
    elsewhere, x = ids == 4, torch.randn(13, width_of(module))
    here, zeroed = ids.masked_fill(elsewhere, 0), weights.masked_fill(elsewhere, 0.0)
    own = both_ways(module, "eager", x, here, zeroed)
    oracle = both_ways(copy.deepcopy(module).double(), "eager", x.double(), here, zeroed.double())
    for each in (own, oracle):
        each[2].masked_fill_(elsewhere, 0.0)
    module._is_expert_parallel = True
    assert_as_exact(both_ways(module, "gossamer", x, ids, weights), own, oracle)
    module._is_expert_parallel = False
    with pytest.raises(ValueError, match="top_k_index must be below n=4, got 4"):
        both_ways(module, "gossamer", x, ids, weights)


class Results(TorchDispatchMode):
    """The operators that were called, and the largest tensor that one of them made."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        self.names.add(str(function))
        if isinstance(out, torch.Tensor) and not out._is_view():
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("family", KINDS)
def test_weights_are_read_where_they_lie(family):
    module = experts(family).requires_grad_(False)
    before = {name: (p.data_ptr(), p._version, p.clone()) for name, p in module.named_parameters()}
    with Results() as results:
        both_ways(module, "gossamer", torch.randn(2, width_of(module)), *routing(2, 4))
    assert results.largest < module.down_proj.untyped_storage().nbytes()
    assert "gossamer.grouped_mm.default" in results.names
    assert "gossamer.grouped_outer.default" not in results.names  # nobody asked for gradients of the weights
    for name, p in module.named_parameters():
        pointer, version, value = before[name]
        assert (p.data_ptr(), p._version) == (pointer, version) and torch.equal(p, value)


def test_weights_that_lie_the_other_way():
    module = experts()
    x, (ids, weights) = torch.randn(13, 32), routing(13, 4)
    own = both_ways(module, "gossamer", x, ids, weights)
    module.down_proj = torch.nn.Parameter(module.down_proj.detach().mT.contiguous().mT)
    for a, b in zip(both_ways(module, "gossamer", x, ids, weights), own, strict=True):
        torch.testing.assert_close(a, b)


class Quantized(torch.Tensor):
    """A tensor that stands for others, as those of torchao and DTensor do."""

    def __tensor_flatten__(self):
        return [], None

    @staticmethod
    def __tensor_unflatten__(*args):
        raise NotImplementedError


@pytest.mark.parametrize("weights, message", [
    (torch.zeros(4, 32, 24, dtype=torch.int8), "down_proj must be float32, float64, bfloat16 or float16, got"),
    (torch.zeros(4, 32, 24).as_subclass(Quantized), "down_proj must be a plain tensor: not quantized, nor spread"),
    (torch.zeros(4, 32, 48)[..., ::2], "down_proj must lie matrix after matrix in memory"),
    (torch.zeros(96, 32), "down_proj must be one tensor of three dimensions"),
])  # fmt: skip
def test_what_cannot_be_served_says_so(weights, message):
    module = experts()
    del module.down_proj
    module.down_proj = torch.nn.Parameter(weights, requires_grad=False)
    module.config._experts_implementation = "gossamer"
    with pytest.raises(TypeError, match=f"cannot serve MixtralExperts: {message}.*take another implementation"):
        module(torch.randn(3, 32), *routing(3, 4))


def test_under_autocast_the_weights_decide():
    module, (ids, weights) = experts(), routing(13, 4)
    x = torch.randn(13, 32)
    expected = both_ways(module, "gossamer", x, ids, weights)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x, ids, weights), expected)
        assert module(x.bfloat16(), ids, weights).dtype == torch.bfloat16


def test_copies_files_and_inference_mode(tmp_path):
    model, ids = model_of("mixtral"), torch.arange(12).view(1, 12)
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, experts_implementation="gossamer", attn_implementation="eager"
    )
    assert loaded.config._experts_implementation == "gossamer"
    assert set(loaded.state_dict()) == set(model.state_dict())
    with torch.inference_mode():
        for other in (copy.deepcopy(model), loaded, model):
            assert torch.equal(other(ids).logits, expected)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_compiles_whole_and_new_routings_compile_nothing(family, compiler):
    torch.compiler.reset()
    module = experts(family)
    module.config._experts_implementation = "gossamer"
    compiled = torch.compile(module, fullgraph=True, backend=compiler)

    def step(call, seed):
        ids, weights = routing(13, 4, seed=seed)
        if seed % 3 == 0:
            ids = torch.stack([torch.zeros(13, dtype=torch.int64), torch.ones(13, dtype=torch.int64)], 1)
        x = torch.randn(13, 32, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        y = call(x, ids, weights)
        return y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    step(compiled, 0)
    with gs.testing.assert_no_recompile():
        for seed in range(50):
            found = step(compiled, seed)
            if seed % 10 == 0:
                for a, b in zip(found, step(module, seed), strict=True):
                    torch.testing.assert_close(a, b)

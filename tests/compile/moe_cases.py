"""Experts of transformers' families in small, and what two implementations of them are compared by."""

import copy
import importlib
import inspect
import os
from types import SimpleNamespace

import torch
import transformers
from torch import nn

FOLDER = os.path.join(os.path.dirname(transformers.__file__), "models")
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 4, "num_experts": 4,
    "num_local_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "expert_dim": 24,
}  # fmt: skip
# Configs that nest their sizes, or have others by layer: their experts read no more than this.
PLAIN = SimpleNamespace(**SIZES | {"moe_intermediate_size": [24, 24]}, hidden_act="silu", hidden_activation="silu")


def families():
    """All that register experts with the interface."""
    return [name for name in sorted(os.listdir(FOLDER)) if "@use_experts_implementation" in source(name)]


def source(name):
    path = os.path.join(FOLDER, name, f"modeling_{name}.py")
    return open(path).read() if os.path.exists(path) else ""


def experts_of(family):
    """Every class of experts that a family has, with four experts and random weights."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ == module.__name__ and issubclass(cls, nn.Module) and hasattr(cls, "_apply_gate"):
            made = made_of(cls, family)
            torch.manual_seed(0)
            for parameter in made.parameters():
                nn.init.normal_(parameter, std=0.2)
            yield made


def made_of(cls, family):
    """From its family's config made small, or from plain sizes where that one nests them or refuses."""
    errors = []
    plain = [lambda: copy.copy(PLAIN), lambda: SimpleNamespace(**vars(PLAIN) | {"moe_intermediate_size": 24})]
    for config in [*configs_of(family), *plain]:
        try:
            return cls(config())
        except Exception as error:  # each family has errors of its own
            errors.append(repr(error))
    raise AssertionError(f"no small config fits {cls.__name__}: {errors}")


def configs_of(family):
    module = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ == module.__name__ and hasattr(cls, "model_type"):
            yield lambda cls=cls: small(cls())


def small(config):
    for name, size in SIZES.items():
        if hasattr(config, name):
            setattr(config, name, size)
    return config


def width_of(module):
    """Of hidden states."""
    return module.down_proj.shape[2 if module.is_transposed else 1]


def routing(tokens, experts, k=2, seed=0):
    """Random hidden states' experts and weights: ids[tokens, k], weights[tokens, k]."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    weights, ids = logits.softmax(-1).topk(k)
    return ids, weights


def both_ways(module, name, x, ids, weights):
    """Output and all gradients of one implementation."""
    module.config._experts_implementation_internal = name
    module.config._experts_implementation = name
    x, weights = x.detach().requires_grad_(), weights.detach().requires_grad_()
    wanted = [x, weights, *(p for p in module.parameters() if p.requires_grad)]
    y = module(x, ids, weights)
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y).cumsum(0) / len(y))]


def assert_as_exact(found, own, oracle):
    """No further from the float64 result than a few times what transformers' own is, and than rounding alone is."""
    for a, b, exact in zip(found, own, oracle, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        allowed = 4 * (b.double() - exact).abs().max() + 8 * torch.finfo(a.dtype).eps * exact.abs().max()
        assert (a.double() - exact).abs().max() <= allowed


def check(module, tokens=13, dtype=torch.float32, k=2):
    """The implementation called gossamer against transformers' eager one, and both against float64."""
    ids, weights = routing(tokens, module.down_proj.shape[0], k)
    x = torch.randn(tokens, width_of(module), generator=torch.Generator().manual_seed(1)).to(dtype)
    module = module.to(dtype)
    weights = weights.to(dtype)
    oracle = both_ways(copy.deepcopy(module).double(), "eager", x.double(), ids, weights.double())
    own = both_ways(module, "eager", x, ids, weights)
    assert_as_exact(both_ways(module, "gossamer", x, ids, weights), own, oracle)

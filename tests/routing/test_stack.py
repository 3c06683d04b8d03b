"""What a stack says of its layers is what its layers do; what it does not know it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stacks import NAMES, Residual, batch, stack_model
from torch import nn
from torch.testing import assert_close

from gossamer.routing.stack import Stack

transformers = pytest.importorskip("transformers")

FORMS = {
    "parallel": ("phi", "gpt_neox", "gpt-j", "falcon"),
    "post": ("bert", "distilbert", "opt, norms last", "torch, norms last"),
    "closed": ("blocks",),
}
# Attention and MLP that can be run and skipped apart.
BRANCHES = {
    "llama", "mistral, a window", "qwen2", "qwen3", "phi", "gpt_neox", "gpt_neox, one after the other", "gpt2", "gpt-j",
    "falcon", "vit", "dinov2",
} | {name for name in NAMES if name.startswith("qwen2")}  # fmt: skip


def _form(name: str) -> str:
    return next((form for form, names in FORMS.items() if name in names), "sequential")


def _seen(model: nn.Module, given: Any, modules: list[nn.Module]) -> dict[nn.Module, tuple[Any, Any]]:
    """For each module its first input and its output, as they were then."""
    seen = {}

    def hook(module: nn.Module, args: Any, keywords: Any, out: Any) -> None:
        first = args[0] if args else keywords["hidden_states"]
        seen[module] = first.clone(), (out if isinstance(out, torch.Tensor) else out[0]).clone()

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model(given)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_what_the_stack_says(name: str) -> None:
    model = stack_model(name)
    stack = Stack.of(model)
    assert len(stack) == 3
    assert [unit.module for unit in stack.units("block")] == list(stack.layers)
    for layer in stack.parts:
        assert layer.form == _form(name)
        if layer.form == "closed":
            continue
        parts = [layer.module, layer.attention, layer.mlp, layer.norm, *(layer.sums or ())]
        seen = _seen(model, batch(name), [part for part in parts if part is not None])
        before, after = seen[layer.module]
        attention = seen[layer.attention][1]
        scale = {"dinov2": getattr(layer.module, "layer_scale1", None)}.get(name) or nn.Identity()
        if layer.form == "post":
            first, second = (seen[norm] for norm in layer.sums)
            assert_close(second[1].view_as(after), after)
            mlp = second[0] - first[1].reshape(second[0].shape)
            assert float((first[0] - before).norm()) > 0.01 and float(mlp.norm()) > 0.01
            if name != "bert":  # whose attention has the norm in it
                assert_close(first[0], before + attention)
        elif layer.form == "parallel":
            assert_close(after, before + attention + seen[layer.mlp][1])
        else:
            between = seen[layer.norm if layer.norm is not None else layer.mlp][0].view_as(before)
            if name == "bloom":
                assert_close(between, attention)
            elif layer.added is None or layer.mlp is None:
                assert_close(between, before + scale(attention))
            else:
                norm = layer.module.post_attention_layernorm
                assert_close(between, before + norm(attention))
            if layer.added is None:
                scale = {"dinov2": getattr(layer.module, "layer_scale2", None)}.get(name) or nn.Identity()
                assert_close(after, between + scale(seen[layer.mlp][1]))


@pytest.mark.parametrize("name", NAMES)
def test_branches_are_units_where_their_results_are_added(name: str) -> None:
    stack = Stack.of(stack_model(name))
    if name not in BRANCHES:
        with pytest.raises(ValueError, match=f'units="branch".*layer 0 is a {type(stack.layers[0]).__name__}'):
            stack.units("branch")
        return
    units = stack.units("branch")
    assert [(unit.layer, unit.kind) for unit in units] == [
        (at, kind) for at in range(3) for kind in ("attention", "mlp")
    ]
    assert [unit.module for unit in units[2:4]] == [stack.parts[1].attention, stack.parts[1].mlp]


def test_the_place_and_the_width() -> None:
    model = stack_model("opt")
    stack = Stack.of(nn.DataParallel(model))
    assert stack.model is model
    assert (stack.place, stack.width) == ("model.decoder.layers", 64)
    assert Stack.of(stack_model("blocks")).place == ""
    with pytest.raises(ValueError, match="hidden_size"):
        _ = Stack.of(stack_model("blocks")).width


def test_one_layer_is_found_by_the_config() -> None:
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    assert len(Stack.of(transformers.LlamaForCausalLM(config))) == 1


def test_a_named_list_may_have_several_classes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(Residual(8), nn.TransformerEncoderLayer(8, 2)))
    with pytest.raises(ValueError, match="Sequential has no list"):
        Stack.of(model)
    assert len(Stack.of(model, "1")) == 2


@pytest.mark.parametrize(
    ("given", "layers", "said"),
    [
        (nn.Linear(2, 2), None, "Linear has no list"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), None, "Sequential has no list"),
        (nn.ModuleList(nn.Sequential(*(Residual(4) for _ in range(2))) for _ in range(2)), "2", "layers='2' names no"),
        (nn.Sequential(Residual(4), Residual(4)), "0.inner", "layers='0.inner' is a Linear"),
        (nn.Sequential(nn.Sequential(Residual(4), Residual(4)), nn.ModuleList([nn.ReLU(), Residual(4)]),
                       nn.ModuleList([Residual(4), Residual(4)])), None, "2 lists of layers, '0', '2'"),
    ],
)  # fmt: skip
def test_what_is_no_stack_is_refused(given: nn.Module, layers: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Stack.of(given, layers)


def test_two_stacks_and_no_module_are_refused() -> None:
    config = transformers.T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder with a decoder"):
        Stack.of(transformers.T5ForConditionalGeneration(config))
    with pytest.raises(TypeError, match="got str"):
        Stack.of("smollm2")
    with pytest.raises(ValueError, match="got 'layer'"):
        Stack.of(stack_model("llama")).units("layer")

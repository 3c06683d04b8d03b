"""A model without some layers computes what the model does that passes them by, and is a model like any other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stacks import NAMES, PLAIN, Residual, batch, stack_model
from torch import nn

import gossamer as gs
from gossamer.routing.stack import Stack

transformers = pytest.importorskip("transformers")

OURS = [name for name in NAMES if name != "dinov2"]
DECODERS = [name for name in OURS if name not in (*PLAIN, "bert", "distilbert", "vit")]


def _out(model: nn.Module, given: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(given)
    return out if isinstance(out, torch.Tensor) else out[0]


def _passing_by(model: nn.Module, given: Any, layers: list[int]) -> torch.Tensor:
    """The model's output where hooks undo these layers."""

    def undo(module: nn.Module, args: Any, keywords: Any, out: Any) -> Any:
        before = args[0] if args else keywords["hidden_states"]
        return before if isinstance(out, torch.Tensor) else (before, *out[1:])

    stack = Stack.of(model)
    handles = [stack.layers[at].register_forward_hook(undo, with_kwargs=True) for at in layers]
    out = _out(model, given)
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize(("name", "layers"), [*((name, [1]) for name in OURS), ("gemma2", [2, 0]), ("blocks", [2, 0])])
def test_it_is_the_model_that_passes_layers_by(name: str, layers: list[int], tmp_path: Path) -> None:
    model, given = stack_model(name), batch(name)
    before, config = copy.deepcopy(model.state_dict()), getattr(model, "config", None)
    said = None if config is None else config.to_dict()
    full = _out(model, given)
    smaller = gs.routing.drop(model, layers)
    place = Stack.of(model).place
    assert type(smaller) is type(model) and len(Stack.of(smaller, place)) == 3 - len(layers)
    found = _out(smaller, given)
    assert torch.equal(found, _passing_by(model, given, layers))
    assert not torch.equal(found, full)
    assert torch.equal(_out(model, given), full)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if config is None:
        return
    assert config.to_dict() == said and config.num_hidden_layers == 3
    assert smaller.config.num_hidden_layers == 3 - len(layers)
    for at, layer in enumerate(Stack.of(smaller).layers):
        assert {vars(m)["layer_idx"] for m in layer.modules() if "layer_idx" in vars(m)} <= {at}
    smaller.save_pretrained(tmp_path)
    again = type(smaller).from_pretrained(tmp_path, attn_implementation=smaller.config._attn_implementation).eval()
    assert torch.equal(_out(again, given), found)


@pytest.mark.parametrize("name", DECODERS)
def test_it_generates_with_a_cache(name: str) -> None:
    smaller = gs.routing.drop(stack_model(name), [1])
    ids = batch(name)[:1]
    more: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, plain = (smaller.generate(ids, use_cache=each, **more) for each in (True, False))
    assert cached.shape[1] == 12
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox"])
def test_it_is_what_a_route_becomes_that_is_the_same_for_all(name: str) -> None:
    model, ids = stack_model(name), batch(name)
    radial = gs.routing.Radial(model, policy=gs.routing.Static(3, 64, keep=[0, 2]), sink=0)
    torch.testing.assert_close(_out(gs.routing.drop(model, [1]), ids), _out(radial, ids), atol=1e-4, rtol=1e-4)


def test_windows_stay_with_their_layers() -> None:
    smaller = gs.routing.drop(stack_model("qwen2, windows in some layers"), [0])
    assert smaller.config.layer_types == ["sliding_attention"] * 2
    smaller = gs.routing.drop(stack_model("qwen2, windows in some layers"), [2])
    assert smaller.config.layer_types == ["full_attention", "sliding_attention"]


def test_weights_that_go_are_not_copied_and_tied_ones_stay_tied() -> None:
    class Heavy(Residual):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    model = nn.Sequential(Residual(4), nn.Sequential(*(Residual(4) for _ in range(3))))
    model[1][1].__class__ = Heavy
    model[1][2].inner.weight = model[0].inner.weight
    smaller = gs.routing.drop(model, [1], stack="1")
    assert smaller[1][1].inner.weight is smaller[0].inner.weight
    assert smaller[0].inner.weight is not model[0].inner.weight
    assert list(smaller.state_dict()) == [
        f"{at}.inner.{part}" for at in ("0", "1.0", "1.1") for part in ("weight", "bias")
    ]


def test_one_module_that_is_several_layers() -> None:
    block, x = Residual(4), torch.randn(3, 4)
    smaller = gs.routing.drop(nn.Sequential(block, block, block), [1])
    assert smaller[0] is smaller[1] and len(smaller) == 2
    assert torch.equal(smaller(x), block(block(x)))


def test_what_layers_are_by_their_number_cannot_be_dropped() -> None:
    config = transformers.GPT2Config(
        n_embd=16,
        n_head=2,
        n_layer=3,
        vocab_size=20,
        bos_token_id=0,
        eos_token_id=0,
        scale_attn_by_inverse_layer_idx=True,
    )
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(
        ValueError, match=r"layer 2 of GPT2LMHeadModel would be number 1, .* cannot say what it is: attn.sc"
    ):
        gs.routing.drop(model, [1])
    assert len(gs.routing.drop(model, [2]).transformer.h) == 2
    config = transformers.GPTNeoConfig(
        hidden_size=16, num_heads=2, num_layers=4, vocab_size=20, attention_types=[[["global", "local"], 2]],
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"GPTNeoForCausalLM cannot say that layers \[0, 2, 3\] are left"):
        gs.routing.drop(transformers.GPTNeoForCausalLM(config), [1])
    with pytest.raises(ValueError, match=r"Dinov2Model cannot say that layers \[0, 2\] are left .*stage3"):
        gs.routing.drop(stack_model("dinov2"), [1])


@pytest.mark.parametrize(
    ("layers", "error", "said"),
    [
        ([3], ValueError, "layers must be from 0 to 2, got 3"),
        ([-1], ValueError, "layers must be from 0 to 2, got -1"),
        ([1, 1], ValueError, r"layers must name each layer once, got \[1, 1\]"),
        (range(3), ValueError, "layers names all 3 layers"),
        ([True], TypeError, "layers must be integers, got True"),
        (["1"], TypeError, "layers must be integers, got '1'"),
    ],
)
def test_other_layers_are_refused(layers: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        gs.routing.drop(stack_model("llama"), layers)

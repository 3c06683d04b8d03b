"""A model without some of its layers: what a route that is the same for all tokens becomes.

smaller = gs.routing.drop(model, profile.order()[:6])
smaller.save_pretrained(folder)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from gossamer.routing.stack import Stack, text_config

Model = TypeVar("Model", bound=nn.Module)

# Lists of a config with an entry for each layer. Others may have as many entries by chance.
_BY_LAYER = (
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "sliding_window", "activation_sparsity_pattern",
)  # fmt: skip
_INDEX = "layer_idx"


@torch.inference_mode(False)
def drop(model: Model, layers: Iterable[int], *, stack: str | None = None) -> Model:
    """A copy of a model without some of its layers; the model is left as it was.

    The layers that stay are numbered anew and the config says how many there are, so `save_pretrained`,
    `from_pretrained` and generation with a cache work as with any model. Weights of dropped layers are not copied.

    Args:
        model: a decoder or encoder of transformers, or a module with one list of residual blocks.
        layers: numbers of the layers to leave out, as `Profile.order` gives them.
        stack: the name of the list of layers; None: the only one that it can be.

    Raises:
        TypeError: layers holds something else than integers.
        ValueError: a layer that there is not, or named twice; all layers; no stack; or a model whose config cannot say
            what the layers that are left are, as where what a layer is depends on its number.

    Source: Men et al., "ShortGPT" (arXiv 2403.03853), for dropping by block influence.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    ...                      num_attention_heads=2)
    >>> smaller = drop(LlamaForCausalLM(config), [1, 2])
    >>> smaller.config.num_hidden_layers, [layer.self_attn.layer_idx for layer in smaller.model.layers]
    (2, [0, 1])
    """
    found = Stack.of(model, stack)
    kept = _kept(layers, len(found))
    # Placeholders, so that deepcopy does not copy what is left out. One module may be several layers.
    staying = {id(found.layers[at]) for at in kept}
    memo: dict[int, Any] = {id(layer): nn.Identity() for layer in found.layers if id(layer) not in staying}
    smaller: Any = copy.deepcopy(found.model, memo)
    inner = smaller.get_submodule(found.place)
    before = list(inner)
    inner._modules = {str(new): before[old] for new, old in enumerate(kept)}
    for new, old in enumerate(kept):
        _renumber(before[old], old, new)
    config = text_config(smaller)
    if hasattr(config, "num_hidden_layers"):
        _tell(config, kept, len(found))
        _check(smaller, found.place, kept)
    return smaller


def _kept(layers: Iterable[int], count: int) -> list[int]:
    given = list(layers)
    for each in given:
        if isinstance(each, bool) or not isinstance(each, int):
            raise TypeError(f"layers must be integers, got {each!r}")
        if not 0 <= each < count:
            raise ValueError(f"layers must be from 0 to {count - 1}, got {each}")
    if len(set(given)) < len(given):
        raise ValueError(f"layers must name each layer once, got {given}")
    if len(given) == count:
        raise ValueError(f"layers names all {count} layers; expected that one is left")
    return [at for at in range(count) if at not in set(given)]


def _renumber(layer: nn.Module, old: int, new: int) -> None:
    """Have a layer's modules know its new number, by which they find their keys in a cache."""
    for name, module in layer.named_modules():
        number = vars(module).get(_INDEX)
        if number is None:
            continue
        if number != old:
            raise ValueError(
                f"layer {old} ({type(layer).__name__}) has {_INDEX}={number!r} in {name or 'itself'}, expected {old}"
            )
        setattr(module, _INDEX, new)


def _tell(config: Any, kept: list[int], count: int) -> None:
    """Have the config say which layers are left."""
    config.num_hidden_layers = len(kept)
    for name in _BY_LAYER:
        value = vars(config).get(name)
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, type(value)(value[at] for at in kept))


def _check(smaller: Any, place: str, kept: list[int]) -> None:
    """See that a model made from the config, as it is saved, is this one.

    Raises:
        ValueError: it is another.
    """
    name, config = type(smaller).__name__, smaller.config
    try:
        saved = type(config).from_dict(config.to_dict())
        saved._attn_implementation = config._attn_implementation
        with torch.device("meta"):
            fresh: Any = type(smaller)(saved)
    except Exception as error:
        raise ValueError(
            f"the config of {name} cannot say that layers {kept} are left ({type(error).__name__}: {error})"
        ) from error
    pairs = zip(smaller.get_submodule(place), fresh.get_submodule(place), strict=True)
    for new, (mine, made) in enumerate(pairs):
        difference = _difference(mine, made)
        if difference:
            raise ValueError(
                f"layer {kept[new]} of {name} would be number {new}, and the config cannot say what it is: {difference}"
            )


def _difference(mine: nn.Module, made: nn.Module) -> str | None:
    """What two modules differ in, but for weights."""
    others = dict(made.named_modules())
    for path, module in mine.named_modules():
        other = others.pop(path, None)
        if type(module) is not type(other):
            return f"{path or 'it'} is a {type(module).__name__}, from the config a {type(other).__name__}"
        assert other is not None
        for name, value in _plain(module).items():
            if value != _plain(other).get(name, value):
                return f"{path or 'it'}.{name} is {value!r}, from the config {_plain(other)[name]!r}"
        for name, parameter in module.named_parameters(recurse=False):
            shape = getattr(other, name).shape
            if parameter.shape != shape:
                return f"{path or 'it'}.{name} has shape {list(parameter.shape)}, from the config {list(shape)}"
    return f"it has no {next(iter(others))}" if others else None


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a module was told when it was made, as far as it is plain."""
    return {
        name: value for name, value in vars(module).items()
        if name != "training" and isinstance(value, bool | int | float | str | None | list | tuple)
    }  # fmt: skip

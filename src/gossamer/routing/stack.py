"""The stack of residual blocks inside a model, and what its layers are made of.

    stack = Stack.of(model)
    stack.units("block")        # whole layers
    stack.units("branch")       # attention 0, MLP 0, attention 1, ...

Layers are found by what they are; attention, MLP and norms in them by the names that families of models give them. What
is not known is never guessed: such layers can be used whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from gossamer.wrappers import unwrap

Kind = Literal["block", "attention", "mlp"]
Form = Literal["sequential", "parallel", "post", "closed"]

_ATTENTION = ("self_attn", "attention", "attn", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
# Several families have the second name for the norm before the MLP, some for the one after attention.
_BEFORE_MLP = (
    "pre_feedforward_layernorm", "post_attention_layernorm", "layernorm_after", "norm2", "norm_2", "ln_2",
    "final_layer_norm", "mlp_norm", "ffn_norm",
)  # fmt: skip
_AFTER_BRANCHES = ("post_feedforward_layernorm", "post_mlp_layernorm")
_POST = (
    ("attention.output.LayerNorm", "output.LayerNorm"),  # BERT
    ("sa_layer_norm", "output_layer_norm"),  # DistilBERT
)
_CROSS = ("encoder_attn", "crossattention", "multihead_attn")
_PARALLEL = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")


@dataclass(frozen=True, eq=False)
class Layer:
    """One residual block.

    Attributes:
        module: the layer.
        form: "sequential": h + attention(norm(h)), then the same with the MLP; "parallel": both branches read h;
            "post": norm(h + attention(h)), then the same with the MLP; "closed": not known.
        attention: its attention; None: not known.
        mlp: its MLP, where that is one module; else None.
        norm: the norm before the MLP. In the form "sequential" it reads the state between attention and MLP, which the
            MLP itself reads where there is none.
        sums: in the form "post" the norms after attention and after the MLP, which read the sums.
        added: None, or why what attention and MLP return is not what their layer adds to its state.
    """

    module: nn.Module
    form: Form = "closed"
    attention: nn.Module | None = None
    mlp: nn.Module | None = None
    norm: nn.Module | None = None
    sums: tuple[nn.Module, nn.Module] | None = None
    added: str | None = None

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same state."""
        return self.form == "parallel"


@dataclass(frozen=True, eq=False)
class Unit:
    """What is run or skipped.

    Attributes:
        layer: which one. kind: "block": all of it; else its attention or its MLP. module: the one to run.
    """

    layer: int
    kind: Kind
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Stack:
    """The residual blocks of a model, one after the other.

    Attributes:
        model: the network without wrappers around it.
        place: the name of the list of layers in the model; "" where the model is that list.
        layers: that list.
        parts: what each layer is made of.
    """

    model: nn.Module
    place: str
    layers: nn.ModuleList | nn.Sequential
    parts: tuple[Layer, ...]

    @classmethod
    def of(cls, model: nn.Module, layers: str | None = None) -> Stack:
        """Find the stack of a model.

        Args:
            model: a decoder or an encoder of transformers, or any module with one list (`nn.ModuleList` or
                `nn.Sequential`) of residual blocks of one class, which the list itself may be.
            layers: the name of the list in the model; None: the only one that it can be.

        Raises:
            TypeError: model is no module.
            ValueError: there is no such list, or there are several.

        >>> from torch import nn
        >>> layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2) for _ in range(3))
        >>> Stack.of(nn.Sequential(nn.Linear(4, 8), nn.Sequential(*layers)))
        Stack(3 TransformerEncoderLayer in '1')
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        model = unwrap(model)
        config = text_config(model)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} is an encoder with a decoder, expected one stack of layers")
        place, found = _find(model, config) if layers is None else (layers, _named(model, layers))
        return cls(model, place, found, tuple(_parts(layer, config) for layer in found))

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        kinds = "/".join(sorted({type(layer).__name__ for layer in self.layers}))
        return f"Stack({len(self)} {kinds} in {self.place!r})"

    @property
    def width(self) -> int:
        """Numbers of a token's state.

        Raises:
            ValueError: the model has no config that says it.
        """
        width = getattr(text_config(self.model), "hidden_size", None)
        if not isinstance(width, int):
            raise ValueError(
                f"{type(self.model).__name__} has no config.hidden_size, which says how wide its states are"
            )
        return width

    def units(self, kind: Literal["block", "branch"] = "block") -> list[Unit]:
        """What can be run or skipped.

        Args:
            kind: "block": each layer; "branch": attention and MLP of each.

        Raises:
            ValueError: another kind, or layers whose attention and MLP are not modules that return what is added to
                the state.
        """
        if kind not in ("block", "branch"):
            raise ValueError(f"units must be block or branch, got {kind!r}")
        if kind == "block":
            return [Unit(at, "block", layer) for at, layer in enumerate(self.layers)]
        units = []
        for at, layer in enumerate(self.parts):
            if layer.added is not None or layer.attention is None or layer.mlp is None:
                raise ValueError(
                    f'units="branch" needs layers whose attention and MLP are modules of their own, but layer {at} is '
                    f"a {type(layer.module).__name__}, {layer.added or 'whose insides are not known'}; expected "
                    'units="block"'
                )
            units += [Unit(at, "attention", layer.attention), Unit(at, "mlp", layer.mlp)]
        return units


def text_config(model: nn.Module) -> Any:
    """The config of a model of transformers, of a model of pictures and texts that of its decoder; None without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _named(model: nn.Module, place: str) -> nn.ModuleList | nn.Sequential:
    try:
        found = model.get_submodule(place)
    except AttributeError:
        raise ValueError(f"layers={place!r} names no module of {type(model).__name__}") from None
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise ValueError(
            f"layers={place!r} is a {type(found).__name__} of {type(model).__name__}, expected an nn.ModuleList or "
            "nn.Sequential with residual blocks"
        )
    return found


def _find(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList | nn.Sequential]:
    """The one list of layers."""
    name, count = type(model).__name__, getattr(config, "num_hidden_layers", None)
    found = dict(_lists("", model, 1 if count == 1 else 2))
    said = ""
    if count is not None:
        found = {place: layers for place, layers in found.items() if len(layers) == count}
        said = f" of config.num_hidden_layers={count}"
    if not found:
        raise ValueError(
            f"{name} has no list (nn.ModuleList or nn.Sequential){said} residual blocks of one class; if it has one of "
            'several classes, name it: layers="..."'
        )
    if len(found) > 1:
        places = ", ".join(repr(place) for place in list(found)[:4])
        raise ValueError(f"{name} has {len(found)} lists of layers, {places}; expected one, or layers=... to name it")
    return next(iter(found.items()))


def _lists(place: str, module: nn.Module, least: int) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Lists of modules of one class that are made of others, by name; nothing inside of such a list."""
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) >= least:
        kinds = {type(each) for each in module}
        if len(kinds) == 1 and all(any(each.children()) or not _is_torchs(each) for each in module):
            yield place, module
            return
    for name, child in module.named_children():
        yield from _lists(f"{place}.{name}" if place else name, child, least)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _child(module: nn.Module, *names: str) -> nn.Module | None:
    """The first of these submodules that there is."""
    for name in names:
        at: Any = module
        for part in name.split("."):
            at = getattr(at, part, None)
        if isinstance(at, nn.Module) and not isinstance(at, nn.Identity):
            return at
    return None


def _parts(layer: nn.Module, config: Any) -> Layer:
    """Attention, MLP and norms of a layer."""
    attention, mlp = _child(layer, *_ATTENTION), _child(layer, *_MLP)
    if attention is None or _child(layer, *_CROSS) is not None:
        return Layer(layer)
    for names in _POST:
        first, second = (_child(layer, name) for name in names)
        if first is not None and second is not None:
            return _post(layer, attention, first, second)
    order = getattr(layer, "do_layer_norm_before", getattr(layer, "norm_first", None))  # OPT, torch
    first = _child(layer, "self_attn_layer_norm", "norm1")
    norm = _child(layer, *_BEFORE_MLP)
    if order is False and first is not None and norm is not None:
        return _post(layer, attention, first, norm)
    after = _child(layer, *_AFTER_BRANCHES) is not None
    if after and _child(layer, _BEFORE_MLP[0], "post_self_attn_layernorm") is None:
        norm = None  # OLMo 2: `post_attention_layernorm` follows attention, and nothing precedes the MLP
    if any(
        getattr(each, name, False) for each in (layer, getattr(layer, "config", None), config) for name in _PARALLEL
    ):
        return Layer(layer, "parallel", attention, mlp, norm, added=_why(layer, attention, mlp, after))
    if norm is None and not after:
        # GPT-J, Phi, Cohere: one norm, and both branches read it.
        if mlp is None or sum("norm" in type(each).__name__.lower() for each in layer.children()) != 1:
            return Layer(layer, attention=attention, mlp=mlp)
        return Layer(layer, "parallel", attention, mlp, None, added=_why(layer, attention, mlp, after))
    if order is None and _child(layer, "self_attn_layer_norm") is not None:
        return Layer(layer, attention=attention)  # whether norms come first is said nowhere
    return Layer(layer, "sequential", attention, mlp, norm, added=_why(layer, attention, mlp, after))


def _post(layer: nn.Module, attention: nn.Module, first: nn.Module, second: nn.Module) -> Layer:
    why = "which passes the sum of its state and a branch through a norm"
    return Layer(layer, "post", attention, _child(layer, *_MLP), sums=(first, second), added=why)


def _why(layer: nn.Module, attention: nn.Module, mlp: nn.Module | None, after: bool) -> str | None:
    """Why a branch cannot be run or skipped by itself; None: it can."""
    if mlp is None:
        return "whose MLP is no module of its own"
    if after:
        return "which passes what a branch returns through a norm before it adds it"
    if any("residual" in inspect.signature(each.forward).parameters for each in (attention, mlp)):
        return "whose branches add the state themselves"
    return None

"""What a decoder's attention looks like, read from its config: layers, heads, widths, windows.

    geometry = Geometry.of(model.config)

Whatever these pages cannot hold, or attention over them cannot compute, is refused here, before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class LayerShape:
    """Attention of one layer: query heads share key heads in groups, and see a window of tokens, or all (None)."""

    key_heads: int
    group: int
    width: int
    window: int | None


@dataclass(frozen=True)
class Geometry:
    """All layers of a model, and the longest text that it was made for (None: unknown).

    Attributes:
        layers: or slots, where tokens may pass through a layer several times: those of all layers for the first time,
            for the second, ... hops: how often.
    """

    layers: tuple[LayerShape, ...]
    longest: int | None
    hops: int = 1

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Read a transformers config, or one with the same attributes.

        Raises:
            ValueError: naming what is not supported: layers that are neither full nor sliding attention, keys and
                values of different widths, heads wider than 256, layers that share another's keys.
        """
        if hasattr(config, "get_text_config"):
            config = config.get_text_config(decoder=True)
        name = getattr(config, "model_type", type(config).__name__)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{name} is an encoder with a decoder, expected a decoder alone")
        count = config.num_hidden_layers
        if getattr(config, "kv_lora_rank", None) is not None:
            raise ValueError(f"{name} keeps compressed keys (kv_lora_rank), expected plain keys and values")
        if getattr(config, "num_kv_shared_layers", 0) or getattr(config, "kv_sharing_modes", None):
            raise ValueError(f"{name} has layers that read another layer's keys, expected keys of each layer's own")
        shapes = []
        for at, (each, kind) in enumerate(zip(_per_layer(config, count), _kinds(config, count), strict=True)):
            heads = each.num_attention_heads
            key_heads = getattr(each, "num_key_value_heads", None) or heads
            width = getattr(each, "head_dim", None) or each.hidden_size // heads
            if kind not in (FULL, SLIDING):
                raise ValueError(f"layer {at} of {name} is {kind}, expected {FULL} or {SLIDING}")
            if width % 16 or not 16 <= width <= 256:
                raise ValueError(
                    f"layer {at} of {name} has heads of width {width}, expected a multiple of 16 up to 256"
                )
            if heads % key_heads:
                raise ValueError(f"layer {at} of {name} has {heads} query heads for {key_heads} key heads")
            window = each.sliding_window if kind == SLIDING else None
            if kind == SLIDING and (window is None or window < 1):
                raise ValueError(f"layer {at} of {name} is {kind} with sliding_window={window!r}")
            shapes.append(LayerShape(key_heads, heads // key_heads, width, window))
        return cls(tuple(shapes), getattr(config, "max_position_embeddings", None))

    @classmethod
    def of_model(cls, model: Any) -> Geometry:
        """A model's own `geometry`, if it has one; else that of its config."""
        own = getattr(model, "geometry", None)
        return own if isinstance(own, Geometry) else cls.of(model.config)

    def repeated(self, hops: int) -> Geometry:
        """The slots of a model whose tokens may pass through each layer `hops` times; slot hop * layers + layer.

        Raises:
            ValueError: hops is below 1.

        >>> len(Geometry((LayerShape(2, 1, 16, None),) * 3, None).repeated(2).layers)
        6
        """
        if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
            raise ValueError(f"hops must be an integer of at least 1, got {hops!r}")
        return Geometry(self.layers * hops, self.longest, self.hops * hops)

    @property
    def once(self) -> Geometry:
        """Each layer once."""
        return Geometry(self.layers[: len(self.layers) // self.hops], self.longest)

    @property
    def key_heads(self) -> list[int]:
        return [layer.key_heads for layer in self.layers]


def _per_layer(config: Any, count: int) -> list[Any]:
    """A config for each layer; newer versions of transformers tell layers of different shapes apart."""
    return list(getattr(config, "per_layer_config", None) or [config] * count)


def _kinds(config: Any, count: int) -> list[str]:
    """What each layer is, by transformers' names."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    if getattr(config, "attention_chunk_size", None) is not None:
        return ["chunked_attention"] * count
    # Some configs name a window that they then do not use.
    used = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) is not None
    return [SLIDING if used else FULL] * count

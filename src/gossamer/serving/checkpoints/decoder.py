"""Whether a configuration is that of a causal decoder that its weights can fill, and that runs as it was trained."""

from __future__ import annotations

from typing import Any

from gossamer.extras import needed
from gossamer.serving.checkpoints import gguf_weights
from gossamer.serving.checkpoints.checkpoint import Checkpoint, reading
from gossamer.serving.checkpoints.gguf_header import Header
from gossamer.serving.checkpoints.settings import check_generation, config_of

_SCALING = {"type", "factor", "original_context_length", "finetuned"}
# What a GGUF file says and some readers do not hear: the key, and the setting that must be equal.
_SAID = {
    "context_length": "max_position_embeddings",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.key_length": "head_dim",
    "attention.head_count_kv": "num_key_value_heads",
}


def configuration(place: Checkpoint) -> Any:
    """The configuration of transformers for a checkpoint, with the RoPE scaling that a GGUF file says.

    Raises:
        ValueError: of a model that is no causal decoder, that is quantized, or whose weights cannot fill it.
    """
    if place.name is None:
        config = config_of(place.folder)
        check_generation(place.folder)
    else:
        config = _of_gguf(place)
    if place.gguf is not None:
        _scale(config, place, place.gguf)
        _check_said(config, place, place.gguf)
    check_decoder(config, place.source)
    _check_rope(config, place.source)
    _check_sizes(config, place)
    return config


def _of_gguf(place: Checkpoint) -> Any:
    transformers = needed("transformers", "language models need transformers", "serving")
    with reading(place.source):
        if place.gguf is not None and place.gguf.architecture in gguf_weights.ARCHITECTURES:
            return gguf_weights.configuration(place.gguf)
        return transformers.AutoConfig.from_pretrained(
            place.folder, local_files_only=True, trust_remote_code=False, gguf_file=place.name
        )


def check_decoder(config: Any, source: str) -> None:
    """Raise ValueError unless transformers has a causal language model for it, and the checkpoint is that model."""
    transformers = needed("transformers", "language models need transformers", "serving")
    kind = type(config)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{source} is an encoder with a decoder ({config.model_type}); expected a causal decoder")
    # is_decoder is False in the settings of some decoders too; where a model can be an encoder it means what it says.
    encoder = kind in transformers.MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", None) is False
    if kind not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or encoder:
        raise ValueError(f"{source} is no causal decoder ({config.model_type})")
    if config.get_text_config() is not config:
        raise ValueError(f"{source} reads more than text ({config.model_type}); expected the decoder of text alone")
    expected = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    names = [each.__name__ for each in (expected if isinstance(expected, list | tuple) else [expected])]
    given = config.architectures or names
    if not set(names) & set(given):
        raise ValueError(
            f"{source} holds a {', '.join(map(str, given))}, which has no causal head; expected {names[0]}"
        )


def _check_rope(config: Any, source: str) -> None:
    known = needed("transformers.modeling_rope_utils", "RoPE needs transformers", "serving").ROPE_INIT_FUNCTIONS
    said = getattr(config, "rope_parameters", None) or {}
    each = [value for value in said.values() if isinstance(value, dict)] or [said]  # one for each type of layer, or one
    for settings in each:
        kind = settings.get("rope_type", "default")
        if kind != "default" and kind not in known:
            raise ValueError(f"{source} has the unknown RoPE type {kind!r}; expected default, {', '.join(known)}")


def _check_sizes(config: Any, place: Checkpoint) -> None:
    """Refuse settings that the weights cannot fill before memory is taken, or layers are made, for them."""
    numbers: dict[str, int] = {}
    optional = ("head_dim", "max_position_embeddings")
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", *optional):
        value = getattr(config, name, None)
        if name in optional and not isinstance(value, int):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{place.settings}: {name} is {value!r}, expected an integer of at least 1")
        numbers[name] = value
    layers, width, heads = numbers["num_hidden_layers"], numbers["hidden_size"], numbers["num_attention_heads"]
    head = numbers.get("head_dim") or max(width // heads, 1)
    needs = {"head_dim": head} if "head_dim" in numbers else {}
    needs |= {"vocab_size": numbers["vocab_size"] * width, "num_attention_heads": heads * head}
    for name in ("intermediate_size", "num_key_value_heads", "num_experts", "num_local_experts"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            needs[name] = value * (head if name == "num_key_value_heads" else width)
    if layers > len(place.shapes):
        raise ValueError(f"{place.settings}: num_hidden_layers is {layers}, but there are {len(place.shapes)} tensors")
    for name, least in needs.items():
        if not 0 < least <= place.elements:
            raise ValueError(
                f"{place.settings}: {name} is {getattr(config, name)!r}, which {place.elements} weights do not fill"
            )


def _scale(config: Any, place: Checkpoint, header: Header) -> None:
    """Put the scaling of RoPE into a configuration that was made without it.

    Factors of the frequencies, which the file holds for Llama 3, are a `longrope` whose two lists are equal.
    """
    scaling = {key: header.said(f"rope.scaling.{key}") for key in _SCALING}
    prefix = f"{header.architecture}.rope.scaling."
    unknown = [k for k in header.metadata if k.startswith(prefix) and k.removeprefix(prefix) not in _SCALING]
    factor = scaling["factor"] or header.said("rope.scale_linear") or 1.0
    kind = scaling["type"] or ("linear" if factor != 1.0 else "none")
    tensors = [name for name in header.tensors if name.startswith("rope_")]
    if kind == "none" and not unknown and not tensors:
        return
    rope = getattr(config, "rope_parameters", None)
    before = scaling["original_context_length"] or config.max_position_embeddings
    if not isinstance(rope, dict) or rope.get("rope_type") != "default" or unknown:
        raise ValueError(f"{place.source} scales RoPE in a way that is not read: {', '.join(unknown) or kind}")
    if kind == "none" and tensors == [gguf_weights.FREQUENCIES]:
        factors = gguf_weights.numbers(place.source, header, gguf_weights.FREQUENCIES)
        rope.update(rope_type="longrope", short_factor=factors, long_factor=factors, attention_factor=1.0, factor=1.0,
                    original_max_position_embeddings=before)  # fmt: skip
    elif kind in ("linear", "yarn") and not tensors:
        rope.update(rope_type=kind, factor=float(factor))
        if kind == "yarn":
            rope["original_max_position_embeddings"] = before
    else:
        raise ValueError(f"{place.source} scales RoPE in a way that is not read: {', '.join([kind, *tensors])}")


def _check_said(config: Any, place: Checkpoint, header: Header) -> None:
    for key, name in _SAID.items():
        said, has = header.said(key), getattr(config, name, None)
        if name == "head_dim" and has is None:
            has = config.hidden_size // config.num_attention_heads
        if isinstance(said, int | float) and said != has:
            raise ValueError(f"{place.source} says {key} {said}, which transformers reads as {name} {has}")

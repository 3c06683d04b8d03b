"""Language models from this machine: Hugging Face's folders, GGUF files, models known by name.

    loaded = load("smollm2", attn_implementation="gossamer")
    loaded.model, loaded.tokenizer, loaded.source

Nothing here asks the network. What a checkpoint lacks is an error, never random numbers.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from gossamer.extras import needed, no_progress_bars
from gossamer.serving.checkpoints import gguf_weights
from gossamer.serving.checkpoints.checkpoint import Checkpoint, find, reading
from gossamer.serving.checkpoints.decoder import check_decoder, configuration
from gossamer.serving.checkpoints.settings import naming
from gossamer.wrappers import unwrap

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# One of these is there wherever a tokenizer is.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model to generate with.

    Attributes:
        model: a causal decoder of transformers, in evaluation mode.
        tokenizer: of transformers; None where the checkpoint has none, or a model object was given.
        source: the path that was read, or the class of the object that was given.
    """

    model: Any
    tokenizer: Any
    source: str


def load(
    model: Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str = "sdpa",
) -> Loaded:
    """A causal decoder and its tokenizer.

    Args:
        model: a name of `gossamer model`, a folder with config.json and safetensors, a folder with one .gguf file, a
            .gguf file, or a causal decoder of transformers, which is handed back as it is.
        dtype: of the weights: a torch.dtype or its name. None: what config.json says; float32 for GGUF files, whose
            blocks of few bits become plain numbers.
        device: where the weights go; None for the CPU.
        attn_implementation: the attention of transformers that the model calls; a given object keeps its own.

    Raises:
        FileNotFoundError: there is no such model, or a part of it is missing.
        ValueError: a damaged file; an encoder, or another model that is no causal decoder of text; quantized weights
            (but GGUF); an unknown architecture or RoPE type; weights that are missing or of other shapes.
        TypeError: `model` is no path, name or model. ImportError: a package of gossamer[serving] is not installed.

    >>> from gossamer.serving.checkpoints.loading import load
    >>> load("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: there is no model 'no/such/folder'; expected a folder with config.json and ...
    """
    kind = _dtype(dtype)
    if not isinstance(model, str | os.PathLike):
        return _given(model, kind, device)
    needed("transformers", "language models need transformers", "serving")
    place = find(model)
    with no_progress_bars():
        config = configuration(place)
        tokenizer = _tokenizer(place)
        network = _network(place, config, kind, attn_implementation)
    if tokenizer is None:
        logger.warning("%s has no tokenizer: the model takes and gives numbers of tokens", place.source)
    elif len(tokenizer) > config.vocab_size:
        words = tokenizer.convert_ids_to_tokens(range(config.vocab_size, len(tokenizer)))
        logger.warning("%s: the model has no row for the tokens %s of the tokenizer", place.source, words[:3])
    return Loaded(network.to(device or "cpu").eval(), tokenizer, place.source)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    kind = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if kind is not None and kind not in _DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}, expected {', '.join(_DTYPES)} or None")
    return kind  # type: ignore[return-value]


def _given(model: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Loaded:
    """A model object, looked at and not changed; without what is wrapped around it."""
    model = unwrap(model) if isinstance(model, torch.nn.Module) else model
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model is a {type(model).__name__}; expected a name, a path, or a model of transformers")
    source, network = type(model).__name__, cast(Any, model)
    if dtype is not None or device is not None:
        raise ValueError(f"dtype and device are for models that are read; move the {source} before it is given")
    check_decoder(network.config, source)
    if network.get_output_embeddings() is None:
        raise ValueError(f"the {source} has no causal head; expected a ...ForCausalLM")
    return Loaded(model, None, source)


def _network(place: Checkpoint, config: Any, dtype: torch.dtype | None, attention: str) -> Any:
    transformers: Any = needed("transformers", "language models need transformers", "serving")
    more: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype}
    folder: Path | None = place.folder
    with reading(place.source), naming(config, place.settings):
        if place.gguf is not None:
            more = {"dtype": dtype or torch.float32}
            if place.gguf.architecture in gguf_weights.ARCHITECTURES:
                folder = None
                more["state_dict"] = gguf_weights.weights(place.source, place.gguf, config, more["dtype"])
            else:
                needed("accelerate", "GGUF files of this architecture need accelerate", "serving")
                # Newer versions of transformers keep the blocks packed where they have a kernel for them.
                packed = getattr(transformers, "GgufConfig", None)
                more |= {"gguf_file": place.name} | ({"quantization_config": packed(dequantize=True)} if packed else {})
        network, info = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            folder, config=config, attn_implementation=attention, local_files_only=True, use_safetensors=True,
            ignore_mismatched_sizes=True, output_loading_info=True, **more,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{place.source} lacks the weights {', '.join(missing[:3])} ({len(missing)} in all)")
    if other := sorted(map(str, info["mismatched_keys"])):
        raise ValueError(
            f"{place.source} has weights of other shapes than its settings say: {other[0]} ({len(other)} in all)"
        )
    if unread := sorted(info["unexpected_keys"]):
        logger.warning(
            "%s has weights that the model does not use: %s (%d in all)", place.source, unread[0], len(unread)
        )
    kinds = {parameter.dtype for parameter in network.parameters()}
    if not kinds <= set(_DTYPES.values()):
        raise ValueError(f"{place.source} has weights of {', '.join(map(str, kinds))}; expected {', '.join(_DTYPES)}")
    if place.gguf is not None:
        _check_all_read(place, network)
    return network


def _check_all_read(place: Checkpoint, network: Any) -> None:
    """Weights of a GGUF file that have no place in the model are left out by transformers without a word."""
    used = sum(parameter.numel() for parameter in network.parameters())
    extra = ("rope_", "output.weight") if network.config.tie_word_embeddings else ("rope_",)
    held = sum(math.prod(shape) for name, shape in place.shapes.items() if not name.startswith(extra))
    if held > used:
        raise ValueError(f"{place.source} holds {held} weights, of which the model reads {used}")


def _tokenizer(place: Checkpoint) -> Any:
    """The tokenizer of a checkpoint; None where it has none."""
    transformers = needed("transformers", "language models need transformers", "serving")
    if place.gguf is not None:
        if "tokenizer.ggml.tokens" not in place.gguf.metadata:
            return None
        with reading(place.source):
            return transformers.PreTrainedTokenizerFast.from_pretrained(
                place.folder, gguf_file=place.name, local_files_only=True
            )
    if not any((place.folder / name).exists() for name in _TOKENIZERS):
        return None
    with reading(f"the tokenizer of {place.source}"):
        return transformers.AutoTokenizer.from_pretrained(place.folder, local_files_only=True, trust_remote_code=False)

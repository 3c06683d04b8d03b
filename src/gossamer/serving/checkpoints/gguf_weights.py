"""Configuration and weights of GGUF files whose architecture has a table here, read once and in order.

transformers' own reader takes other architectures too (`loading` uses it for them); it parses the file three times,
copies the weights twice, and does not hear what the file says about RoPE.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer import files
from gossamer.extras import needed
from gossamer.serving.checkpoints.gguf_header import Header

ARCHITECTURES = ("llama", "qwen2", "qwen3")
FREQUENCIES = "rope_freqs.weight"  # factors of RoPE's frequencies: part of the configuration
_SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_IDS = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def configuration(header: Header) -> Any:
    """The configuration of transformers, without a scaling of RoPE.

    Raises:
        ValueError: a setting is missing or no positive number.
    """
    transformers = needed("transformers", "language models need transformers", "serving")
    values = {name: _number(header, key) for key, name in _SETTINGS.items()}
    heads = values["num_attention_heads"]
    if "token_embd.weight" not in header.tensors:
        raise ValueError("it has no token_embd.weight")
    values["num_key_value_heads"] = _number(header, "attention.head_count_kv", heads)
    values["head_dim"] = _number(header, "attention.key_length", values["hidden_size"] // heads)
    values["vocab_size"] = header.tensors["token_embd.weight"].shape[0]
    theta = float(_number(header, "rope.freq_base", 10000.0))
    kind = header.architecture
    more: dict[str, Any] = {}
    if kind == "llama":
        more["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        if header.said("attention.sliding_window") is not None:  # Mistral's files say llama too
            kind, more = "mistral", {"sliding_window": _number(header, "attention.sliding_window")}
    ids = {f"{ours}_token_id": header.metadata.get(f"tokenizer.ggml.{key}_token_id") for key, ours in _IDS.items()}
    return transformers.CONFIG_MAPPING[kind](
        **values, **ids, **more,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings="output.weight" not in header.tensors,
        name_or_path=str(header.metadata.get("general.name", "")),
    )  # fmt: skip


def _number(header: Header, key: str, default: Any = None) -> Any:
    said = header.said(key)
    value = default if said is None else said
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"its {header.architecture}.{key} is {value!r}, expected a positive number")
    return value


def weights(path: str, header: Header, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the file, under transformers' names.

    Raises:
        ValueError: a tensor that has no place in the model.
    """
    found: dict[str, Tensor] = {}
    with files.open_file(path) as file:
        for name, entry in header.tensors.items():
            if name == FREQUENCIES:
                continue
            ours = _name(name)
            file.seek(entry.start)
            packed = np.fromfile(file, np.uint8, entry.bytes).reshape(*entry.shape[:-1], -1)
            found[ours] = _ordered(_floats(packed, entry.format), ours, header, config).to(dtype)
    return found


def numbers(path: str, header: Header, name: str) -> list[float]:
    """The numbers of one tensor."""
    entry = header.tensors[name]
    with files.open_file(path) as file:
        file.seek(entry.start)
        return _floats(np.fromfile(file, np.uint8, entry.bytes), entry.format).flatten().tolist()


def _floats(packed: np.ndarray, form: str) -> Tensor:
    gguf = needed("gguf", "GGUF files need gguf", "serving")
    return torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[form]))


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    table = {} if parts is None else _OUTSIDE if parts[1] is None else _INSIDE
    if parts is None or parts[2] not in table:
        raise ValueError(f"its tensor {name!r} has no place in the model")
    layer = "" if parts[1] is None else f"model.layers.{parts[1]}."
    return f"{layer}{table[parts[2]]}.{parts[3]}"


def _ordered(tensor: Tensor, name: str, header: Header, config: Any) -> Tensor:
    """Rows of queries and keys in transformers' order: files of llama hold the two halves of a head interleaved."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if header.architecture != "llama" or heads is None:
        return tensor
    if tensor.shape[0] % (2 * heads):
        raise ValueError(f"its {name} has {tensor.shape[0]} rows, which {heads} heads do not divide")
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

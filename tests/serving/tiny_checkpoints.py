"""Tiny checkpoints with random weights, as save_pretrained and as writers of GGUF files leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

MERGES = [("t", "h"), ("th", "e"), ("a", "n")]
# Blocks of 32 numbers are along rows, so that every matrix can be packed.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    return ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens())}, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def model(kind: str = "Llama", head: str = "ForCausalLM", **settings: Any) -> Any:
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokens()), **{**SIZES, **settings})
    made = transformers.AutoModelForCausalLM.from_config(config) if head == "ForCausalLM" else None
    made = (made or getattr(transformers, f"{kind}{head}")(config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # norms and biases too must not be what a new model has
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    return made


def folder(place: Path, made: Any, *, words: bool = True, **saving: Any) -> Path:
    made.save_pretrained(place, **saving)
    if words:
        tokenizer().save_pretrained(place)
    return place


_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as files of llama hold them: number i of one half of a head, then number i of the other."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return torch.stack([halves[:, 0], halves[:, 1]], 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    made: Any,
    architecture: str,
    *,
    packed: str = "F32",
    words: bool = True,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file of `made`; matrices in the format `packed`. `metadata` and `tensors` are written too, or instead."""
    config, writer = made.config, gguf.GGUFWriter(path, architecture)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    said = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]), "rope.dimension_count": head,
        "attention.key_length": head,
    }  # fmt: skip
    said |= metadata or {}
    for key, value in said.items():
        name = key.removeprefix("/") if key.startswith("/") else f"{architecture}.{key}"
        {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)](name, value)
    if words:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens())
        writer.add_token_types([3, 3] + [1] * (len(tokens()) - 2))
        writer.add_token_merges([" ".join(pair) for pair in MERGES])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    every = {_gguf_name(name): value for name, value in _weights(made, architecture).items()}
    for name, value in {**every, **(tensors or {})}.items():
        form = gguf.GGMLQuantizationType[packed if value.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(value, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, inside = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[inside]}.{kind}"


def _weights(made: Any, architecture: str) -> dict[str, np.ndarray]:
    config, found = made.config, {}
    for name, value in made.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found[name] = (interleaved(value, heads) if heads and architecture == "llama" else value).numpy()
    return found

"""Small decoders of every supported family, with random weights that are large enough for attention to matter."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCABULARY = 200
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0,
    "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


_LLAMA3 = _rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, all key heads, llama3": ("LlamaConfig", {"num_key_value_heads": 4, "rope_parameters": _LLAMA3}),
    "llama, one key head, yarn": (
        "LlamaConfig",
        {"num_key_value_heads": 1, "rope_parameters": _rope("yarn", factor=32.0, original_max_position_embeddings=64)},
    ),
    "llama, linear": ("LlamaConfig", {"rope_parameters": _rope("linear", factor=4.0)}),
    "llama, heads of 80": ("LlamaConfig", {"head_dim": 80}),
    "llama, heads of 96": ("LlamaConfig", {"head_dim": 96}),
    "llama, heads of 256": ("LlamaConfig", {"head_dim": 256}),
    "mistral, a window": ("MistralConfig", {"sliding_window": 32}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, windows in some layers": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32}),
    "opt": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": ("PhiConfig", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
}  # fmt: skip


def decoder(family: str, plain: str = "eager") -> Any:
    """A model of a family, made once, with its plain attention: whatever a test before this one has left."""
    model = _made(family, plain)
    if model.config._attn_implementation != plain:
        model.set_attn_implementation(plain)
    return model


@cache
def _made(family: str, plain: str) -> Any:
    name, more = FAMILIES[family]
    taken = getattr(transformers, name)
    # What a family does not know it would keep, unused, and other code would believe it.
    shared = {key: value for key, value in _SIZES.items() if key in inspect.signature(taken).parameters}
    config = taken(**shared | more)
    config._attn_implementation = plain
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(3)
    return model


def prompts(*lengths: int) -> list[list[int]]:
    return [torch.randint(2, VOCABULARY, (length,)).tolist() for length in lengths]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers itself generates."""
    model.set_attn_implementation("eager")
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()

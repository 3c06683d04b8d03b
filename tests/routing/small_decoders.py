"""Small decoders of several families with random weights, and texts for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers: Any = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip
_ALL = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, use_sliding_window=False),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, head_dim=16, sliding_window=64),
    "opt": lambda: transformers.OPTConfig(**_ALL, ffn_dim=48, word_embed_proj_dim=64),
    "neox": lambda: transformers.GPTNeoXConfig(**_ALL),
    "phi": lambda: transformers.PhiConfig(**SIZES),
}
WHOLE = {"opt", "gemma2"}  # layers whose branches are no modules that return what is added
WINDOWED = {"gemma2"}  # layers whose windows count places: sparse keys are refused there


def made(family: str = "llama", seed: int = 0, **changed: Any) -> Any:
    config = FAMILIES[family]()
    for name, value in changed.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if family == "gemma2" else "sdpa"
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(seed))

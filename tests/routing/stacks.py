"""Small models with stacks of residual blocks: decoders, encoders, plain modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs

transformers = pytest.importorskip("transformers")
from serving_decoders import FAMILIES, VOCABULARY, decoder  # noqa: E402 - needs transformers

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_dropout": 0.0
}  # fmt: skip
_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 2, **_TEXT}),
    "gpt-j": ("GPTJForCausalLM", "GPTJConfig", {"n_embd": 32, "n_layer": 3, "n_head": 2, "rotary_dim": 8, **_TEXT}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**_SIZES, **_TEXT}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_SIZES, **_TEXT}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 2, **_TEXT}),
    "gpt_neox, one after the other": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {
        **_SIZES, **_TEXT, "use_parallel_residual": False}),
    "opt, norms last": ("OPTForCausalLM", "OPTConfig", {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "do_layer_norm_before": False, **_TEXT}),
    "bert": ("BertForMaskedLM", "BertConfig", {**_SIZES, **_TEXT}),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {
        "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, **_TEXT}),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_SIZES, "image_size": 8, "patch_size": 4}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_SIZES, "image_size": 8, "patch_size": 4}),
}  # fmt: skip
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "torch, norms first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 2, 48, batch_first=True, norm_first=True), 3, enable_nested_tensor=False
    ),
    "torch, norms last": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 2, 48, batch_first=True), 3, enable_nested_tensor=False
    ),
    "gossamer's ViT": lambda: gs.models.ViT((3, 8, 8), 10, patch=4, dim=32, depth=3, heads=2),
    "blocks": lambda: nn.Sequential(*(Residual(32) for _ in range(3))),
}
# Variants of a family's positions and heads are one stack.
NAMES = [*(name for name in FAMILIES if not name.startswith("llama,")), *_OTHERS, *PLAIN]


class Residual(nn.Module):
    """h + W h."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)


def stack_model(name: str) -> nn.Module:
    """A model in evaluation mode, with weights for which every branch matters."""
    if name in FAMILIES:
        return decoder(name)
    torch.manual_seed(1)
    if name in PLAIN:
        return PLAIN[name]().eval()
    taken, config, settings = _OTHERS[name]
    model = getattr(transformers, taken)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def batch(name: str) -> Any:
    """What the model of this name takes."""
    torch.manual_seed(2)
    if name in ("vit", "dinov2", "gossamer's ViT"):
        return torch.randn(2, 3, 8, 8)
    return torch.randn(2, 5, 32) if name in PLAIN else torch.randint(3, VOCABULARY, (2, 7))

"""Small models in which it is known how much of each kind of sparsity there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")


class Mixture(nn.Module):
    """Experts in a loop, of which a router with a large bias chooses the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(8))
        with torch.no_grad():
            self.router.weight.zero_()
            self.router.bias.copy_(torch.arange(8) < 2)

    def forward(self, x: Tensor) -> Tensor:
        gates, ids = self.router(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, at = torch.where(ids == e)
            y = y.index_add(0, rows, expert(x[rows]) * gates[rows, at, None])
        return y


def decoder(layers: int = 3, **settings: Any) -> Any:
    """A causal language model of 96 tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 1024}
    config = transformers.LlamaConfig(vocab_size=96, num_hidden_layers=layers, **{**sizes, **settings})
    return transformers.LlamaForCausalLM(config).eval()


def encoder() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.BertModel(config).eval()


def ids(texts: int, tokens: int) -> Tensor:
    return torch.randint(0, 96, (texts, tokens), generator=torch.Generator().manual_seed(1))


def padded(*lengths: int) -> dict[str, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids(len(lengths), max(lengths)), "attention_mask": mask.long()}


def _zeros() -> tuple[nn.Module, Any]:
    x = torch.randn(64, 64).abs() + 1
    x[:, ::4] = 0
    return nn.Sequential(nn.Linear(64, 32)), x


def _convolution() -> tuple[nn.Module, Any]:
    x = torch.randn(4, 16, 8, 8).abs() + 1
    x[:, :12] = 0
    return nn.Sequential(nn.Conv2d(16, 8, 3, padding=1)), [(x, torch.zeros(4)), (x, torch.zeros(4))]


def relu_decoder() -> Any:
    """A decoder with ReLU, whose last linear of a block reads zeros in all places but one of four."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.weight.zero_()
            layer.fc1.bias.copy_(torch.where(torch.arange(128) % 4 == 0, 1.0, -1.0))
    return model


def _idle_layer() -> tuple[nn.Module, Any]:
    model = decoder()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
        for at in (0, 2):  # these make the state anew
            model.model.layers[at].mlp.down_proj.weight.mul_(100)
    return model, ids(2, 24)


def _uniform_attention() -> tuple[nn.Module, Any]:
    """Every key is looked at alike, except that the first one's page is looked at most."""
    model = decoder(1)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    return model, ids(1, 640)


def _dead_channels() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3))
    with torch.no_grad():
        net[2].weight[:, 16:32] = 0
    return net.eval(), torch.randn(2, 3, 8, 8)


def _wide(width: int = 160) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 32)).eval(), torch.randn(8, 32)


def _labels() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5000)).eval(), torch.randn(8, 16)


def _fused_experts() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all experts alike: top-k takes two of them, the same for all tokens
    return model, ids(1, 16)


# 16 last queries of 640 tokens over pages of 64: the first page holds 64 keys, the newest 48 to 64.
_ENDS = sum((64 + length - 576) / length for length in range(625, 641)) / 16


@dataclass(frozen=True)
class Case:
    """What is known: the share of a finding of this kind, and the part that it names first."""

    name: str
    kind: str
    make: Callable[[], tuple[nn.Module, Any]]
    share: float
    first: str | None = None
    verdicts: tuple[str, ...] = ("pays", "too little to gain")


CASES = [
    Case("linear", "zeros", _zeros, 1 / 4, "0"),
    Case("convolution", "zeros", _convolution, 3 / 4, "0"),
    Case("ReLU decoder", "decoding", lambda: (relu_decoder(), ids(2, 24)), 3 / 4 * 128 / (5 * 32 + 128)),
    Case("padded", "padding", lambda: (encoder(), padded(40, 10, 5, 5)), 1 - 60 / 160, "batch 0"),
    Case("padded little", "padding", lambda: (encoder(), padded(20, 19)), 1 / 40, None, ("too little to gain",)),
    Case("looping experts", "experts", lambda: (Mixture().eval(), torch.randn(32, 16)), 3 / 4),
    Case("fused experts", "experts", _fused_experts, 3 / 4),
    Case("idle layer", "layers", _idle_layer, 1 / 3, "model.layers.1"),
    Case("uniform attention", "attention", _uniform_attention, _ENDS, None, ("nothing here",)),
    Case("dead channels", "channels", _dead_channels, 16 / 64),
    Case("wide", "width", _wide, 64 / 160),
    Case("two registers wide", "width", lambda: _wide(32), 16 / 32),
    Case("narrow", "width", lambda: _wide(8), 4 / 8),
    Case("labels", "labels", _labels, 33 * 5000 / (33 * 5000 + 17 * 32), "2"),
]

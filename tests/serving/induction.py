"""A decoder of two layers with weights set by hand: it finds where a token stood before and says what came after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

TOKENS = 16  # 0 to 5 ask, 6 to 11 answer, 12 to 15 fill
WIDTH = 32  # of a head: numbers i and i + 16 turn together, by 10 ** (-i / 2) a token
ASKED = 6
SHARP = 60.0


def model() -> Any:
    """Layer 0, key head 0: the token before. Layer 1, key head 1: who has my token before him. The others say nothing.

    Numbers of the hidden state: the token, the token before, the answer (16 each), and a constant.
    """
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=WIDTH, max_position_embeddings=256, rope_theta=1e8, rms_norm_eps=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        made.model.embed_tokens.weight[:, :TOKENS] = torch.eye(TOKENS)
        made.model.embed_tokens.weight[:, 48] = 1
        first, second = (layer.self_attn for layer in made.model.layers)
        turns = 10.0 ** (-torch.arange(8) / 2)
        first.q_proj.weight[:8, 48] = SHARP * turns.cos()  # fast turns tell places apart
        first.q_proj.weight[16:24, 48] = -SHARP * turns.sin()
        first.k_proj.weight[:8, 48] = 1
        _copy(first, key_head=0, source=0, target=16)
        slow = torch.cat([torch.arange(8, 16), torch.arange(24, 32)])  # slow ones do not
        second.q_proj.weight[2 * WIDTH + slow, torch.arange(TOKENS)] = SHARP
        second.k_proj.weight[WIDTH + slow, 16 + torch.arange(TOKENS)] = 1
        _copy(second, key_head=1, source=0, target=32)
        made.lm_head.weight[:, 32:48] = torch.eye(TOKENS)
    return made


def _copy(attention: Any, key_head: int, source: int, target: int) -> None:
    """Have a key head, through the first of its two query heads, add 16 numbers of the hidden state to others."""
    at = torch.arange(TOKENS)
    attention.v_proj.weight[key_head * WIDTH + at, source + at] = math.sqrt(1 / 32)  # about what the norm multiplies by
    attention.o_proj.weight[target + at, 2 * key_head * WIDTH + at] = 1


def sample(seed: int, length: int = 80) -> tuple[Tensor, Tensor]:
    """Six tokens with their answers, filler, and the six again in another order; the answers are the labels."""
    generator = torch.Generator().manual_seed(seed)
    answers = 6 + torch.randperm(ASKED, generator=generator)
    told, asked = (torch.randperm(ASKED, generator=generator) for _ in range(2))
    filler = torch.randint(12, TOKENS, (length - 4 * ASKED,), generator=generator)
    pairs = [torch.stack([order, answers[order]], 1).flatten() for order in (told, asked)]
    tokens = torch.cat([filler[:4], pairs[0], filler[4:], pairs[1]])
    labels = torch.zeros(length, dtype=torch.bool)
    labels[length - 2 * ASKED + 1 :: 2] = True
    return tokens, labels

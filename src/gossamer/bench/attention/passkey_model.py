"""The tiny decoder of `passkeys`: trained here, on texts that grow from 20 to 4,096 words, in minutes on a CPU.

    python -m gossamer.bench.attention.passkey_model [FOLDER]

It begins as models of this kind end up in any case, which saves most of the time: heads of the first layer look one and
two tokens back, and what a head gives out is what it read (values and outputs are each other's transposes). What to
look for, and all else, is learned. Needs transformers, tokenizers and safetensors: pip install 'gossamer[serving]'.

Source: mimetic initialization (arXiv 2305.09828), for the transposes; induction heads (arXiv 2209.11895), for the rest.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.bench.attention.passkey_task import VOCABULARY, lesson, tokenizer
from gossamer.measure.clock import now

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "passkey_decoder"
WIDTH, HEADS, KEY_HEADS, HEAD, LAYERS = 128, 4, 2, 32, 2
THETA = 1e8  # of RoPE: half of a head's numbers hardly turn within 4,096 tokens, and can compare what tokens say
DEVIATION = 0.08  # of all weights at first, about 1 / sqrt(WIDTH)
RATE, WARM, FALL = 2e-3, 30, 0.25  # learning rate, steps to reach it, share of the steps in which it falls


@dataclass(frozen=True)
class Stage:
    """Steps on texts of half to all of `longest` words, `rows` at a time; see `passkey_task.write` for the rest."""

    steps: int
    rows: int
    longest: int
    keys: int
    animals: float
    ahead: float

    def length(self, draw: random.Random) -> int:
        return draw.randint(max(self.longest // 2, self.keys * 6 + 8), self.longest)


STAGES = (
    Stage(150, 48, 20, 2, 0.3, 3.0), Stage(100, 32, 32, 4, 0.3, 3.0), Stage(100, 16, 96, 8, 0.2, 2.0),
    Stage(60, 6, 256, 12, 0.1, 2.0), Stage(60, 3, 1024, 20, 0.06, 1.5), Stage(40, 2, 2048, 24, 0.06, 1.5),
    Stage(140, 1, 4096, 24, 0.06, 1.5),
)  # fmt: skip


def turned(rows: Tensor, by: int) -> Tensor:
    """Rows of a head, [HEAD, n], as RoPE turns them `by` tokens on."""
    angles = by * THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = rows[: HEAD // 2], rows[HEAD // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


@torch.no_grad()
def begin() -> Any:
    """The decoder before training."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=HEAD, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=True,
        initializer_range=DEVIATION, eos_token_id=0, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    shared = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)  # what all tokens have, for heads that ask where
    model.model.embed_tokens.weight.add_(DEVIATION * math.sqrt(WIDTH) * shared)
    for at, layer in enumerate(model.model.layers):
        q, k, v, o = (getattr(layer.self_attn, f"{name}_proj").weight for name in "qkvo")
        group = HEADS // KEY_HEADS
        values = v.view(KEY_HEADS, 1, HEAD, WIDTH).expand(-1, group, -1, -1).reshape(HEADS * HEAD, WIDTH)
        o.mul_(0.3).add_(0.8 * values.T)
        if at:
            continue
        fast = torch.zeros(HEAD, 1)
        fast[:3] = 0.8
        k.mul_(0.3).add_((fast * shared).repeat(KEY_HEADS, 1))
        q.mul_(0.3).add_(torch.cat([turned(fast, -1 - head % group) * shared for head in range(HEADS)]))
    return model


def answers(model: Any, texts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the tokens before the labelled ones, and the labelled ones."""
    hidden = model.model(input_ids=texts[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head(hidden[labels[:, 1:]]), texts[labels]


def train(
    model: Any, stages: tuple[Stage, ...] = STAGES, *, seed: int = 0, every: int = 20, rate: float = RATE,
    stops: bool = False,
) -> None:  # fmt: skip
    """Train in place; the log says how it goes every so many steps."""
    draw, started = random.Random(seed), now()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    plan = [stage for stage in stages for _ in range(stage.steps)]
    for at, stage in enumerate(plan):
        share = min(1.0, (at + 1) / WARM, (len(plan) - at) / (FALL * len(plan)))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        length = stage.length(draw)
        texts, labels = lesson(draw, stage.rows, length, stage.keys, stage.animals, stage.ahead, stops=stops)
        logits, wanted = answers(model, texts, labels)
        loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if at % every == 0 or at == len(plan) - 1:
            right = float((logits.argmax(1) == wanted).float().mean())
            spent = now() - started
            logger.info("step %d: %d words, loss %.3f, %.1f%% right, %.0f s", at, length, loss, 100 * right, spent)


def main(folder: Path = FOLDER) -> None:
    """Train on one thread, and save as float16."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = begin()
    train(model)
    model.half().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))

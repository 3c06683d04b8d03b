"""The bundled model of `gossamer serve demo` and `gossamer generate demo`: the decoder of `passkeys`, taught to stop.

    python -m gossamer.bench.attention.passkey_demo [FOLDER]

It goes on from the decoder of `passkey_model`, whose answers never end, with texts in which the stop is a part of an
answer. Its conversations are plain texts. Needs transformers, tokenizers and safetensors: pip install
'gossamer[serving]'.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from gossamer.bench.attention.passkey_model import FOLDER, Stage, train
from gossamer.bench.attention.passkey_task import END, STOP, TOKEN, tokenizer
from gossamer.serving.checkpoints.models import BUNDLED

STAGES = (
    Stage(80, 48, 20, 2, 0.3, 3.0), Stage(60, 32, 32, 3, 0.3, 3.0), Stage(40, 16, 96, 8, 0.2, 2.0),
    Stage(40, 3, 1024, 20, 0.06, 1.5), Stage(60, 1, 4096, 24, 0.06, 1.5), Stage(20, 32, 32, 2, 0.3, 3.0),
)  # fmt: skip
RATE = 1e-3
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"


def main(folder: Path = BUNDLED) -> None:
    """Train on one thread, and save as float16."""
    from transformers import AutoModelForCausalLM

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    train(model, STAGES, rate=RATE, stops=True)
    model.generation_config.eos_token_id = [TOKEN[END], TOKEN[STOP]]
    model.half().save_pretrained(folder)
    words = tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))

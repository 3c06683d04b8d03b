"""The decoders that whole models are measured with: SmolLM2 where it is on the machine, and made ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gossamer import extras
from gossamer.bench.section import Settings
from gossamer.serving.checkpoints import models
from gossamer.serving.checkpoints.loading import load

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
SMALL = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
}  # fmt: skip
"""SmolLM2's own sizes."""
LARGE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
"""Those of models with a billion weights."""
TOY = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model, its name for a table, and its tokenizer, if it has one."""

    name: str
    model: Any
    tokenizer: Any = None


def transformers_here() -> bool:
    """Whether there is anything to measure with; if not, the log says so."""
    return extras.compared("transformers", "transformers", "serving") is not None


def smollm2(settings: Settings) -> Decoder | None:
    """The model in float32; None, and a line in the log, where it is not on the machine. For toy
    sizes a toy without a tokenizer."""
    if settings.quick:
        return Decoder("toy", llama(TOY, torch.float32))
    if not models.is_here(SMOLLM2):
        logger.warning("%s is not on this machine, so its rows are left out: gossamer model %s", SMOLLM2, SMOLLM2)
        return None
    loaded = load(SMOLLM2, dtype=torch.float32)
    return Decoder("SmolLM2", loaded.model.requires_grad_(False), loaded.tokenizer)


def llama(sizes: Mapping[str, int], dtype: torch.dtype) -> Any:
    """A Llama with random weights: what it says means nothing, its steps take the time of a trained one's."""
    transformers = extras.needed("transformers", "language models need transformers", "serving")
    config = transformers.LlamaConfig(**sizes, dtype=dtype, pad_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that a decoded token reads: all, but of an embedding that is not the output layer too one row,
    which is not counted."""
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    every = sum(each.nbytes for each in model.parameters())
    return int(every if inputs is outputs else every - inputs.nbytes)

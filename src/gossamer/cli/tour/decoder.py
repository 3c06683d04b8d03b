"""The language model of two cards: SmolLM2 as it was fetched, or a toy without a tokenizer."""

from __future__ import annotations

import torch

from gossamer.bench.attention.decoders import SMOLLM2, TOY, Decoder, llama, smollm2
from gossamer.bench.section import Settings
from gossamer.serving.checkpoints import models

TOY_LAYERS = 4


def decoder(quick: bool) -> Decoder:
    """The model in float32.

    Raises:
        FileNotFoundError: it is not on this machine.
    """
    if quick:
        return Decoder("toy", llama(TOY | {"num_hidden_layers": TOY_LAYERS}, torch.float32))
    if not models.is_here(SMOLLM2):
        raise FileNotFoundError(f"{SMOLLM2} is not on this machine; fetch it (93 MB) with: gossamer model {SMOLLM2}")
    found = smollm2(Settings())
    assert found is not None
    return found

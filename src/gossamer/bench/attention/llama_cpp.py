"""llama.cpp's decoding of the same file, through llama-cpp-python, where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch

from gossamer.bench.attention.decoders import SMOLLM2
from gossamer.bench.attention.steps import FIRST, ON, STEPS
from gossamer.serving.checkpoints import models
from gossamer.serving.geometry import Geometry

logger = logging.getLogger(__name__)


def file_here() -> Path | None:
    """The file of SmolLM2 if llama.cpp can read it; the log says if not."""
    if importlib.util.find_spec("llama_cpp") is None:
        logger.warning("llama-cpp-python is not installed, so its row is left out: pip install llama-cpp-python")
        return None
    return models.found(SMOLLM2)


class LlamaCpp:
    """Greedy steps behind a context that llama.cpp has read itself, and which are taken back; gives the tokens.

    Args:
        file: a .gguf file, whose blocks of few bits it multiplies as they are. geometry: of its model.
    """

    def __init__(self, file: Path, geometry: Geometry, context: int) -> None:
        threads = torch.get_num_threads()
        self.file, self.geometry, self.context = file, geometry, context
        self.llama: Any = importlib.import_module("llama_cpp").Llama(
            str(file), n_ctx=context + ON, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.llama.eval([FIRST] * context)

    def __call__(self) -> list[list[int]]:
        token, made = FIRST, []
        for _ in range(STEPS):
            self.llama.eval([token])
            token = self.llama.sample(temp=0.0)
            made.append(token)
        self.llama.n_tokens -= STEPS  # eval forgets what lies behind them
        return [made]

    def held(self) -> int:
        """Its keys and values are stored in float16."""
        return sum(2 * 2 * layer.key_heads * layer.width * self.context for layer in self.geometry.layers)

    def read(self) -> int:
        return self.held()

    def weights(self) -> int:
        return self.file.stat().st_size

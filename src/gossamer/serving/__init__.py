"""Long texts: attention over pages, and generation.

    llm = gs.serving.LLM("path/to/model", sparsity=gs.serving.Sparsity(token_budget=4096))
    llm.generate(["..."], gs.serving.Sampling(max_tokens=64))

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="gossamer")
    model.generate(ids, past_key_values=gs.serving.SparseCache(model.config, token_budget=4096))

Everything is loaded on first use. May import ops, pattern and what lies below; training and xmc lie beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer.serving.cache import SparseCache
    from gossamer.serving.calibrating.calibration import calibrate
    from gossamer.serving.calibrating.passkeys import passkeys
    from gossamer.serving.checkpoints.loading import load
    from gossamer.serving.engine import Engine
    from gossamer.serving.heads import HeadPattern
    from gossamer.serving.llm import LLM, Completion
    from gossamer.serving.prefill import Antidiagonal, PrefillPolicy, VerticalSlash
    from gossamer.serving.sampling import Choice, Sampler, Sampling
    from gossamer.serving.sparsity import Sparsity
    from gossamer.serving.stepping.jobs import Job
    from gossamer.serving.text import TextStream

_NAMES: dict[str, str] = {  # a name of a module of the package: the module that has it
    "LLM": "gossamer.serving.llm",
    "Antidiagonal": "gossamer.serving.prefill",
    "Choice": "gossamer.serving.sampling",
    "Completion": "gossamer.serving.llm",
    "Engine": "gossamer.serving.engine",
    "HeadPattern": "gossamer.serving.heads",
    "Job": "gossamer.serving.stepping.jobs",
    "Sampler": "gossamer.serving.sampling",
    "Sampling": "gossamer.serving.sampling",
    "PrefillPolicy": "gossamer.serving.prefill",
    "SparseCache": "gossamer.serving.cache",
    "Sparsity": "gossamer.serving.sparsity",
    "TextStream": "gossamer.serving.text",
    "VerticalSlash": "gossamer.serving.prefill",
    "calibrate": "gossamer.serving.calibrating.calibration",
    "load": "gossamer.serving.checkpoints.loading",
    "passkeys": "gossamer.serving.calibrating.passkeys",
}

__all__ = [
    "LLM", "Antidiagonal", "Choice", "Completion", "Engine", "HeadPattern", "Job", "PrefillPolicy", "Sampler",
    "Sampling", "SparseCache", "Sparsity", "TextStream", "VerticalSlash", "calibrate", "load",
    "passkeys",
]  # fmt: skip


__getattr__, __dir__ = surface(__name__, _NAMES, extra="serving")

"""Long texts: attention over pages, and generation.

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="gossamer")
    model.generate(ids, past_key_values=gs.serving.SparseCache(model.config, token_budget=4096))

Importing this package makes attn_implementation="gossamer" known to transformers, if that is installed. May import ops,
pattern and what lies below; training and xmc lie beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.serving.cache import SparseCache
    from gossamer.serving.engine import Engine, Job
    from gossamer.serving.heads import HeadPattern
    from gossamer.serving.sampling import Choice, Sampler, Sampling
    from gossamer.serving.sparsity import Sparsity
    from gossamer.serving.text import TextStream

_NAMES: dict[str, str] = {  # a name of a module of the package: the module that has it
    "Choice": "gossamer.serving.sampling",
    "Engine": "gossamer.serving.engine",
    "HeadPattern": "gossamer.serving.heads",
    "Job": "gossamer.serving.engine",
    "Sampler": "gossamer.serving.sampling",
    "Sampling": "gossamer.serving.sampling",
    "SparseCache": "gossamer.serving.cache",
    "Sparsity": "gossamer.serving.sparsity",
    "TextStream": "gossamer.serving.text",
}

__all__ = [
    "Choice", "Engine", "HeadPattern", "Job", "Sampler", "Sampling", "SparseCache", "Sparsity",
    "TextStream",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gossamer.serving' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


if importlib.util.find_spec("transformers") is not None:
    from gossamer.serving import hooks

    hooks.register()

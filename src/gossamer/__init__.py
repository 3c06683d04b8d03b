"""Gossamer: dynamic sparsity that pays.

Zeros whose places are known only at run time, or that move while a network trains, become less time and less
memory. A sparse thing is a `Pattern` (which micro-tiles are present) and a plain tensor of their values.

    import gossamer as gs
    method = gs.training.Chase(model, optimizer, density=0.1, channel_sparsity=0.4, total_steps=1000)
    small = gs.compact(model, example_inputs, optimizer=optimizer)

Everything is loaded on first use: importing gossamer imports torch and nothing optional. Where transformers is imported
too it learns of attn_implementation="gossamer" and experts_implementation="gossamer".
"""

from __future__ import annotations

import sys

# `python -m gossamer` searches the current folder before all others, where a file of the user's may have the name of a
# package. This is the first moment at which that can be ended; `gossamer` and any other program do not come here.
if (
    {"gossamer", "gossamer.cli"} & set(sys.orig_argv[1:])
    and sys.argv[:1] == ["-m"]
    and not getattr(sys.flags, "safe_path", False)  # which Python 3.10 does not have
):
    del sys.path[0]

import importlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from gossamer.arrival import when_imported
from gossamer.lazy import surface

if TYPE_CHECKING:
    from gossamer import (
        bench,
        compaction,
        compile,
        data,
        doctor,
        integrations,
        kernels,
        measure,
        models,
        nn,
        ops,
        pattern,
        planner,
        profile,
        report,
        routing,
        server,
        serving,
        testing,
        training,
        tuning,
        xmc,
    )
    from gossamer.compaction.compact import compact
    from gossamer.compaction.store import load_compact
    from gossamer.ops.tiles import detect
    from gossamer.pattern import Pattern

try:
    __version__ = _version("gossamer")
except PackageNotFoundError:  # a source tree on PYTHONPATH that was never installed
    __version__ = "0+source"

_MODULES = (
    "bench", "compaction", "compile", "data", "doctor", "integrations", "kernels", "measure", "models", "nn", "ops",
    "pattern", "planner", "profile", "report", "routing", "server", "serving", "testing", "training", "tuning", "xmc",
)  # fmt: skip
_NAMES = {
    "Pattern": "gossamer.pattern",
    "detect": "gossamer.ops",
    "compact": "gossamer.compaction",
    "load_compact": "gossamer.compaction",
}

__all__ = [
    "Pattern",
    "__version__",
    "bench",
    "compact",
    "compaction",
    "compile",
    "data",
    "detect",
    "doctor",
    "integrations",
    "kernels",
    "load_compact",
    "measure",
    "models",
    "nn",
    "ops",
    "pattern",
    "planner",
    "profile",
    "report",
    "routing",
    "server",
    "serving",
    "testing",
    "training",
    "tuning",
    "xmc",
]


__getattr__, _ = surface(__name__, _NAMES, _MODULES)


def __dir__() -> list[str]:
    return __all__


# attn_implementation="gossamer" and experts_implementation="gossamer" are known wherever gossamer and transformers are
# both imported, in whichever order.
when_imported("transformers.modeling_utils", lambda: importlib.import_module("gossamer.serving.hooks"))
when_imported("transformers.integrations.moe", lambda: importlib.import_module("gossamer.compile.mixtures.experts"))
# from_pretrained puts back the thresholds that a model was saved with.
when_imported("transformers.quantizers.auto", lambda: importlib.import_module("gossamer.nn.threshold.from_pretrained"))

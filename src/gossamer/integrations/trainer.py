"""A callback for transformers' Trainer that runs any gossamer method, and keeps its state beside each checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gossamer import extras, files
from gossamer.integrations.rebuild import rebuild


def sparsify(make: Callable[[Any, Any, int], Any]) -> Any:
    """A callback that builds the method with `make(model, optimizer, total_steps)` when training begins.

    A run is resumed from a checkpoint in its own output_dir, where the method's state lies.
    """
    extras.needed("transformers", "the Trainer callback needs transformers", "hf")
    from transformers import TrainerCallback

    def file(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "gossamer.pt"

    class Sparsify(TrainerCallback):
        method: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Accelerate wraps the optimizer; the hooks belong on the one that steps.
            optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
            saved = torch.load(file(args, state), weights_only=True) if state.global_step else None
            self.method = rebuild(make, kwargs["model"], optimizer, state.max_steps, saved)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with files.replacing(file(args, state)) as whole:
                torch.save(self.method.state_dict(), whole)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.method.detach()

    return Sparsify()

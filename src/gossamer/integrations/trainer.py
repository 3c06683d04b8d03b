"""A callback for transformers' Trainer that runs any gossamer method, and keeps its state beside each checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from gossamer import extras, files
from gossamer.integrations.rebuild import rebuild

STATE = "gossamer.pt"


def sparsify(make: Callable[[Any, Any, int], Any], *, resume: str | Path | None = None) -> Any:
    """A callback that builds the method with `make(model, optimizer, total_steps)` when training begins.

    In any precision of the Trainer. `callback.method` is the method. A run resumed with more epochs or max_steps is
    made longer (`gossamer.training.Method.extend`). With `load_best_model_at_end` the method ends with the masks of
    the best checkpoint.

    Args:
        make: called with the model, its optimizer and the number of optimizer steps.
        resume: the checkpoint's folder, where it is neither in output_dir nor `args.resume_from_checkpoint`.

    Raises:
        FileNotFoundError: in `Trainer.train`, the checkpoint that is resumed has no state of the method.
    """
    extras.needed("transformers", "the Trainer callback needs transformers", "hf")
    from transformers import TrainerCallback

    def own(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"

    def saved(args: Any, state: Any) -> dict[str, Any] | None:
        if not state.global_step:
            return None
        folder, named = own(args, state), Path(args.resume_from_checkpoint or "")
        if resume is not None or named.name == folder.name:
            folder = named if resume is None else Path(resume)
        if not (folder / STATE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {STATE}, the state of the method at step {state.global_step}: to resume from "
                "another folder, say so, sparsify(make, resume=FOLDER)"
            )
        return torch.load(folder / STATE, weights_only=True)

    class Sparsify(TrainerCallback):
        method: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.method = rebuild(make, kwargs["model"], kwargs["optimizer"], state.max_steps, saved(args, state))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.should_save:
                with files.replacing(own(args, state) / STATE) as whole, files.honest(whole) as writer:
                    torch.save(self.method.state_dict(), cast(IO[bytes], writer))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.method.detach()
            best = Path(state.best_model_checkpoint or "") / STATE
            if args.load_best_model_at_end and best.is_file():
                self.method.load_state_dict(torch.load(best, weights_only=True))

    return Sparsify()

"""A Lightning callback that trains any gossamer method inside `Trainer.fit`, and keeps its state in the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gossamer import extras
from gossamer.integrations.rebuild import rebuild


def sparsify(make: Callable[[Any, Any, int], Any]) -> Any:
    """A callback that builds the method with `make(module, optimizer, total_steps)` when the fit starts.

    Trainer(callbacks=[sparsify(lambda net, optimizer, steps: gs.training.RigL(net, optimizer, total_steps=steps))])
    """
    extras.needed("lightning.pytorch", "the Lightning callback needs lightning", "lightning")
    from lightning.pytorch import Callback

    class Sparsify(Callback):
        method: Any = None
        loaded: dict[str, Any] | None = None

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise ValueError(f"the module has {len(trainer.optimizers)} optimizers; expected one")
            total = int(trainer.estimated_stepping_batches)
            self.method = rebuild(make, pl_module, trainer.optimizers[0], total, self.loaded)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self.method.detach()

        def state_dict(self) -> dict[str, Any]:
            return {} if self.method is None else self.method.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = state_dict

    return Sparsify()

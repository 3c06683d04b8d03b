"""A Lightning callback that trains any gossamer method inside `Trainer.fit`, and keeps its state in the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gossamer import extras
from gossamer.integrations.rebuild import rebuild
from gossamer.training.settings import count


def sparsify(make: Callable[[Any, Any, int], Any], *, optimizer: int | None = None) -> Any:
    """A callback that builds the method with `make(module, optimizer, total_steps)` when the fit starts.

        Trainer(callbacks=[sparsify(lambda net, optimizer, steps: gs.training.RigL(net, optimizer, total_steps=steps))])

    In any precision. A LightningModule with one network is that network to every method: names are those inside it.
    `callback.method` is the method. A fit resumed with more epochs or steps is made longer
    (`gossamer.training.Method.extend`).

    Args:
        make: called with the LightningModule, the optimizer and the number of steps that the Trainer expects.
        optimizer: which of several optimizers, from 0; a callback for each that trains sparse. `make` then takes its
            network from the module.

    Raises:
        ValueError: in `Trainer.fit`, `optimizer` is none of the optimizers, or not given for several; a Trainer that
            knows no end.
    """
    extras.needed("lightning.pytorch", "the Lightning callback needs lightning", "lightning")
    from lightning.pytorch import Callback

    if optimizer is not None:
        count("optimizer", optimizer, low=0)

    class Sparsify(Callback):
        method: Any = None
        loaded: dict[str, Any] | None = None

        @property
        def state_key(self) -> str:
            own = type(self).__qualname__
            return own if optimizer is None else f"{own}, optimizer {optimizer}"

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            found, wanted = trainer.optimizers, optimizer or 0
            if (optimizer is None and len(found) != 1) or wanted >= len(found):
                raise ValueError(
                    f"the module has {len(found)} optimizers, got optimizer={optimizer}: say which one trains sparse, "
                    "as in sparsify(make, optimizer=0)"
                )
            total = trainer.estimated_stepping_batches
            if not math.isfinite(total):
                raise ValueError("the Trainer knows no end, and schedules need one: pass it max_epochs or max_steps")
            self.method = rebuild(make, pl_module, found[wanted], int(total), self.loaded)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self.method.detach()

        def state_dict(self) -> dict[str, Any]:
            return {} if self.method is None else self.method.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = state_dict

    return Sparsify()

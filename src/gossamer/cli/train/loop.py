"""The training loop, for the dense and the sparse stage alike.

Every number depends on (seed, step) alone: the order of the data, the learning rate, the random numbers inside the
network. A run that stopped after any step therefore continues as if it had not.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from gossamer.cli.stop import Stop, Stopped
from gossamer.cli.train.config import Train
from gossamer.cli.train.recipe import rate
from gossamer.data import Splits, batches, steps_per_epoch
from gossamer.integrations.distributed import World


@dataclass
class Stage:
    """A network in training and what has been seen of it so far."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    method: Any = None
    step: int = 0
    loss_sum: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "stage": self.name,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "curve": self.curve,
            "snapshots": self.snapshots,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": None if self.method is None else self.method.state_dict(),
        }


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the examples whose largest logit is their label, in eval mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(512), y.split(512), strict=True))
    model.train(was_training)
    return right / len(y)


def _broken(loss: torch.Tensor, model: nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return not bool(torch.isfinite(loss) & torch.isfinite(nn.utils.get_total_norm(gradients)))


def train(
    stage: Stage,
    data: Splits,
    config: Train,
    world: World,
    *,
    stop: Stop,
    save: Callable[[Stage], None],
    on_step: Callable[[int], None],
    on_epoch: Callable[[Stage], None],
) -> None:
    """Train `stage` from where it stands to the end of the last epoch.

    Args:
        stage: changed in place.
        data: on the device already.
        stop: looked at after each step; when it is set, the step is finished, the stage saved and `Stopped` raised.
        save: called every `checkpoint_every` epochs, at the end, and before stopping.
        on_step: called with the number of steps done.
        on_epoch: called in the first process after each epoch, to add to the curve.

    Raises:
        Stopped: a signal asked for it.
        FloatingPointError: the loss or a gradient is not finite; the weights are those of the step before.
    """
    per_epoch = steps_per_epoch(len(data.train_x), config.batch_size)
    total = per_epoch * config.epochs
    network = world.wrap(stage.model).train()
    for epoch in range(stage.step // per_epoch, config.epochs):
        order = batches(
            data.train_x,
            data.train_y,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=epoch,
            start=stage.step % per_epoch,
            rank=world.rank,
            world=world.size,
        )
        for x, y in order:
            # Dropout draws from here: the same numbers at the same step, others in every process.
            torch.manual_seed(((config.seed * total + stage.step) * world.size + world.rank) % 2**63)
            for group in stage.optimizer.param_groups:
                group["lr"] = stage.optimizer.defaults["lr"] * rate(stage.step, total, config.warmup)
            stage.optimizer.zero_grad()
            loss = cross_entropy(network(x), y)
            loss.backward()
            stopped, broken = world.any(bool(stop), _broken(loss, stage.model))
            if broken:
                raise FloatingPointError(
                    f"the loss or a gradient is not finite at epoch {epoch + 1}, step {stage.step + 1} of the "
                    f"{stage.name} network"
                )
            stage.optimizer.step()
            stage.step += 1
            stage.loss_sum += float(loss.detach())
            on_step(stage.step)
            if stopped and stage.step % per_epoch:
                save(stage)
                raise _stopped(stage, epoch, stop)
        if world.first:
            on_epoch(stage)
        stage.loss_sum = 0.0
        if stopped or (epoch + 1) % config.checkpoint_every == 0 or stage.step == total:
            save(stage)
        if stopped:
            raise _stopped(stage, epoch, stop)
    # A signal after the last step was not seen by it: what follows is not begun.
    if world.any(bool(stop))[0]:
        raise _stopped(stage, config.epochs - 1, stop)


def _stopped(stage: Stage, epoch: int, stop: Stop) -> Stopped:
    place = f"epoch {epoch + 1}, step {stage.step} of the {stage.name} network"
    # A process that was not signalled itself stops because another one was.
    return Stopped(place, stop.signal or signal.SIGINT)

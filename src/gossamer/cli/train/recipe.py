"""From flags to the objects of a run: network, optimizer, learning rate, method."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from gossamer import models, training
from gossamer.cli.train.config import Train
from gossamer.data import Splits
from gossamer.spelling import suggestion

CHANNEL_SPARSITY = 0.4
UPDATES = 50
# Widths end on multiples of this: a vector register of AVX-512 and a tile of a tensor core hold 16 numbers, and a
# width just above a multiple takes the time of the next one. It is the same on every machine, as seeds should be.
WIDTHS = 16


def network(config: Train, data: Splits) -> nn.Module:
    """The untrained network; the same seed gives the same weights, for the dense and the sparse run alike."""
    torch.manual_seed(config.seed)
    return models.build(config.model, input_shape=data.input_shape, classes=data.classes)


def optimizer(config: Train, model: nn.Module) -> Optimizer:
    """SGD or AdamW over all parameters; the learning rate is set anew before every step."""
    name = config.optimizer or ("adamw" if config.model == "vit" else "sgd")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"model {config.model!r} has no parameters to train")
    lr, decay = {"adamw": (3e-3, 0.05), "sgd": (0.1, 5e-4)}[name]
    lr = lr if config.lr is None else config.lr
    decay = decay if config.weight_decay is None else config.weight_decay
    if name == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=decay)
    return SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay)


def rate(step: int, total: int, warmup: float) -> float:
    """Learning rate of `step`, as a share of the highest: a linear rise, then half a cosine down to zero.

    >>> from gossamer.cli.train.recipe import rate
    >>> rate(0, 100, 0.1), rate(9, 100, 0.1), round(rate(55, 100, 0.1), 3)
    (0.1, 1.0, 0.5)
    """
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def method(config: Train, model: nn.Module, optimizer: Optimizer, total: int, example: torch.Tensor) -> Any:
    """The sparse training method, hooked to the optimizer; the weights outside its first pattern are zero then.

    Raises:
        ValueError: an unknown method, or a density or channel target that it refuses.
    """
    known = training.METHODS
    if config.method not in known:
        meant = suggestion(config.method, known)
        raise ValueError(f"--method is {config.method!r}; expected one of {', '.join(known)}{meant}")
    kind = known[config.method]
    takes = inspect.signature(kind).parameters
    every = config.update_every
    options: dict[str, Any] = {"density": config.density, "total_steps": total, "seed": config.seed}
    options |= {name: every for name in ("update_every", "explore_every", "channel_every") if name in takes}
    if "channel_sparsity" in takes:
        given = config.channel_sparsity
        options["channel_sparsity"] = CHANNEL_SPARSITY if given is None else given
        options["example_inputs"] = example
        options |= {"round_to": WIDTHS, "scope": config.scope}
        options["compact_every"] = config.compact_every
    elif config.channel_sparsity is not None or config.scope != "inner" or config.compact_every is not None:
        raise ValueError(
            f"--channel-sparsity, --scope and --compact-every are for chase; {config.method} removes no chosen channels"
        )
    most = 1 - takes["extra_density"].default if "extra_density" in takes else 1.0
    if config.density > most:
        raise ValueError(
            f"--density is {config.density}; expected at most {most} for {config.method}, which explores with "
            f"{1 - most:.2g} more of the weights; the dense network is trained beside it in any case"
        )
    return kind(model, optimizer, **options)

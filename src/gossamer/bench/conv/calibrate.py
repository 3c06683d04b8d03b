"""Bring every ReLU of a network to a wanted share of zeros, by the shifts that the network itself has before them.

Weights are drawn at random; the last bias before a ReLU is set so that the wanted share of its inputs is negative. The
zeros then are where a real ReLU left them, in forward and backward, and nothing is added to the step that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gossamer.bench.conv.layers import spread
from gossamer.models.fixup import FixupBottleneck, FixupResNet
from gossamer.models.resnet import Basic, Bottleneck, ResNet
from gossamer.models.vgg import VGG

RELUS = (F.relu, torch.relu, torch.Tensor.relu)


class _AtEveryReLU(TorchFunctionMode):
    """Gives the input of each ReLU to `visit` first, and what it returns to the ReLU."""

    def __init__(self, visit: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.visit, self.count = visit, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            y = torch.relu(self.visit(self.count, args[0]))
            self.count += 1
            return y
        return func(*args, **(kwargs or {}))


def shifts(model: nn.Module) -> list[nn.Parameter]:
    """The parameter that moves the input of each ReLU, in order of execution."""
    found: list[Any] = []
    if isinstance(model, VGG):
        found += [m.bias for m in model.features if isinstance(m, nn.Conv2d)]
        found += [m.bias for m in model.head if isinstance(m, nn.Linear)]
    elif isinstance(model, ResNet):
        found.append(model.get_submodule("stem.1").bias)
        for block in model.modules():
            if isinstance(block, (Basic, Bottleneck)):
                norms = [block.bn1, block.bn2] + ([block.bn3] if isinstance(block, Bottleneck) else [])
                found += [norm.bias for norm in norms]
    elif isinstance(model, FixupResNet):
        found.append(model.stem_shift)
        for block in model.modules():
            if isinstance(block, FixupBottleneck):
                found += [block.conv1.after, block.conv2.after, block.shift]
    else:
        raise TypeError(f"model is a {type(model).__name__}; expected VGG, ResNet or FixupResNet")
    return [p for p in found if isinstance(p, nn.Parameter)]


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Weights as large as He's whose mean over a filter is zero, so that a channel is not always on or always off."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
            module.weight.sub_(module.weight.mean((1, 2, 3), keepdim=True))
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)


def _quantile(x: Tensor, share: float) -> float:
    """The value below which `share` of x lies, from a sample of a million."""
    flat = x.flatten()
    flat = flat[:: max(1, flat.numel() // 1_000_000)].sort().values
    return float(flat[min(len(flat) - 1, round(share * len(flat)))])


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor, zeros: Sequence[float], seed: int = 0) -> None:
    """Draw the weights of `model` and set its shifts so that ReLU i leaves the share zeros[i] of zeros on `x`.

    Channels differ by 1 in the logit of their shares where a shift has one entry per channel. BatchNorm's running
    statistics become those of `x`: in evaluation the zeros are the same.
    """
    generator = torch.Generator().manual_seed(seed)
    _draw_weights(model, generator)
    parameters = shifts(model)
    if len(parameters) != len(zeros):
        raise ValueError(f"zeros has {len(zeros)} entries; expected one for each of {len(parameters)} ReLUs")

    def visit(i: int, z: Tensor) -> Tensor:
        parameter = parameters[i]
        if parameter.dim() == 0:
            move = torch.tensor(-_quantile(z, zeros[i]))
            parameter.add_(move)
            return z + move
        channels = z.transpose(0, 1).flatten(1)
        share = spread(zeros[i], len(channels), generator)
        move = torch.tensor([-_quantile(row, float(s)) for row, s in zip(channels, share, strict=True)])
        parameter.add_(move)
        return z + move.view(1, -1, *[1] * (z.dim() - 2))

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    training = model.training
    model.train()
    with _AtEveryReLU(visit):
        model(x)
    model.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def reached(model: nn.Module, x: Tensor) -> list[float]:
    """The share of zeros after each ReLU."""
    out: list[float] = []

    def visit(i: int, z: Tensor) -> Tensor:
        out.append(1 - float((z > 0).float().mean()))
        return z

    with _AtEveryReLU(visit):
        model(x)
    return out

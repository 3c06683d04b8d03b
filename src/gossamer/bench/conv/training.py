"""Training for real: the digits enlarged to 64 pixels, three copies from one seed stepping in turn on the same batches.

Zeros are the network's own: every epoch a step that is not timed logs them for each convolution, in its input and in
the gradient of its output. The gradients by inputs are timed in steps of their own, since torch computes them in one
operator with those by weights. VGG-16 without BatchNorm and Fixup have zeros in both; ResNet-34 with BatchNorm is the
control, whose gradients are dense. Losses of the three copies are compared step by step. Training doubles a difference
every few steps, and torch's two memory formats differ by rounding too; so every tenth step is also done by torch at the
weights of ours, which shows the difference that skipping makes by itself. (What is left of it in the gradient are the
few ReLUs whose input rounds to the other side of zero.)
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer.bench.cells import lines, value
from gossamer.bench.conv import split
from gossamer.bench.conv.compare import CHANNELS_LAST, CONTIGUOUS
from gossamer.bench.conv.images import digits
from gossamer.bench.conv.networks import OURS, TOY, arms
from gossamer.bench.section import Row, Rows, Section, Settings, Table
from gossamer.bench.step import training_step
from gossamer.measure.interleave import turns

PARTS = ("forward", "by input", "by weight")
SIDES = {"x": "input", "dy": "gradient"}
EXACT, CHECK = 50, 10  # losses are compared over the first 50 steps; every 10th of them also at the same weights
RATE = {"vgg16_plain": 0.003, "resnet34": 0.005, "fixup_resnet50": 0.01}
STEPS = {"vgg16_plain": 60, "resnet34": 30, "fixup_resnet50": 30}  # of each of two epochs


def log_zeros(model: nn.Module, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Shares of zeros at every convolution in one step: of its input, and of the gradient of its output."""
    out: list[dict[str, Any]] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            entry = {"layer": name, "x": 1 - float(inputs[0].count_nonzero()) / inputs[0].numel()}
            out.append(entry)
            output.register_hook(lambda dy: entry.update(dy=1 - float(dy.count_nonzero()) / dy.numel()))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(watch(name)))
    F.cross_entropy(model(x), y).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return out


def _laid_out(x: Tensor, key: str) -> Tensor:
    """A batch in the memory format of a copy of the network."""
    return x.contiguous(memory_format=torch.contiguous_format if key == CONTIGUOUS else torch.channels_last)


def _noted(step: Callable[[], Tensor], losses: list[float]) -> None:
    losses.append(step().item())


def _apart(net: nn.Module, dense: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """At the weights of `net`, with all zeros skipped: how far its loss is from that of `dense`, and its gradient, as a
    share of the norm."""
    net, dense = copy.deepcopy(net), copy.deepcopy(dense)
    dense.load_state_dict(net.state_dict())
    for module in net.modules():
        if isinstance(module, (gs.nn.Conv2d, gs.nn.Linear)):
            module.skip = "input"  # a copy would first learn, by dense calls
    losses = [F.cross_entropy(each(x), y) for each in (net, dense)]
    for loss in losses:
        loss.backward()
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]) for each in (net, dense)
    )
    return abs(losses[0].item() - losses[1].item()), float((ours - theirs).norm() / theirs.norm())


def _by_input(net: nn.Module, x: Tensor, y: Tensor, samples: int) -> float:
    """Seconds of the convolutions' gradients by their inputs in one step, from steps in which no weight wants one."""
    net.requires_grad_(False)
    image = x.detach().requires_grad_()
    found = [split.timed(lambda: F.cross_entropy(net(image), y).backward())["backward"] for _ in range(samples)]
    net.requires_grad_(True)
    return sorted(found)[samples // 2]


def start(model: nn.Module) -> None:
    """Hidden layers of the head as He starts them, which VGG-16 needs to learn at all; no dropout, whose draws would
    differ from copy to copy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.Linear) and module.weight.any():  # Fixup's starts at zero
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(32), y.split(32), strict=True))
    model.train()
    return right / len(y)


def row(name: str, settings: Settings) -> dict[str, Any]:
    """One network trained three times."""
    side, batch, epochs, limit = (32, 8, 1, 2) if settings.quick else (64, 16, 2, STEPS[name])
    data = digits(side, seed=0)
    options = TOY[name] if settings.quick else {"head": (512,)} if name == "vgg16_plain" else {}
    torch.manual_seed(0)
    model = gs.models.build(name, input_shape=(3, side, side), classes=10, **options)
    start(model)
    made = arms(model, data.train_x[:1])
    optimizers = {
        key: torch.optim.SGD(net.train().parameters(), lr=RATE[name], momentum=0.9) for key, (net, _, _) in made.items()
    }
    losses: dict[str, list[float]] = {key: [] for key in made}
    samples: dict[str, list[dict[str, float]]] = {key: [] for key in made}
    by_input = dict.fromkeys(made, 0.0)
    zeros, step_number = [], 0
    same_weights: dict[str, list[tuple[float, float]]] = {OURS: [], CONTIGUOUS: []}
    for epoch in range(epochs):
        for i, (x, y) in enumerate(gs.data.batches(data.train_x, data.train_y, batch_size=batch, seed=0, epoch=epoch)):
            if i == limit:
                break
            if step_number < EXACT and step_number % CHECK == 0:
                for key, found in same_weights.items():
                    found.append(_apart(made[key][0], made[CHANNELS_LAST][0], _laid_out(x, CHANNELS_LAST), y))
            for key in turns(list(made), step_number):
                step = training_step(made[key][0], optimizers[key], _laid_out(x, key), y)
                samples[key].append(split.timed(partial(_noted, step, losses[key])))
            step_number += 1
        for key, (net, _, _) in made.items():
            each = _by_input(net, _laid_out(x, key), y, samples=1 if settings.quick else 3)
            by_input[key] += each * step_number / (epoch + 1)
        zeros.append({"epoch": epoch, "layers": log_zeros(copy.deepcopy(made[CHANNELS_LAST][0]), x, y)})
    seconds = {key: {part: sum(s[part] for s in found) for part in found[0]} for key, found in samples.items()}
    for key, spent in seconds.items():
        spent["by input"], spent["by weight"] = by_input[key], spent["backward"] - by_input[key]
    best = min((CHANNELS_LAST, CONTIGUOUS), key=lambda key: seconds[key]["step"])

    def apart(one: str, other: str) -> float:
        return max(abs(a - b) for a, b in zip(losses[one][:EXACT], losses[other][:EXACT], strict=True))

    tested = 16 if settings.quick else len(data.test_y)
    accuracy = {key: _accuracy(net, data.test_x[:tested], data.test_y[:tested]) for key, (net, _, _) in made.items()}
    return {
        "network": name, "batch": batch, "side": side, "steps": step_number, "seconds": seconds, "best": best,
        "speedup": seconds[best]["step"] / seconds[OURS]["step"],
        "conv_speedup": seconds[best]["conv"] / seconds[OURS]["conv"],
        "loss_first": losses[OURS][0], "loss_last": math.fsum(losses[OURS][-5:]) / len(losses[OURS][-5:]),
        "loss_apart": apart(OURS, CHANNELS_LAST), "loss_apart_torch": apart(CONTIGUOUS, CHANNELS_LAST),
        "same_weights": {
            key: {"loss": max(loss for loss, _ in found), "gradient": max(gradient for _, gradient in found)}
            for key, found in same_weights.items()
        },
        "losses": losses, "accuracy": accuracy, "zeros": zeros, "sites": made[OURS][2].stats(),
    }  # fmt: skip


def rows(settings: Settings) -> Iterator[Row]:
    """One row per network, without Fixup's in a quick run. All steps count, also those in which ours learns."""
    return (row(name, settings) for name in RATE if not (settings.quick and name == "fixup_resnet50"))


def _parts(row: dict[str, Any], name: str) -> str:
    """Seconds of the three passes, and of the rest."""
    found = row["seconds"][name]
    parts = [found[part] for part in PARTS]
    return ", ".join(f"{part:.1f}" for part in [*parts, found["step"] - sum(parts)])


COLUMNS = (
    ("network", value("network")), ("steps", value("steps")),
    ("torch s", lambda row: f"{row['seconds'][row['best']]['step']:.1f}"),
    ("ours s", lambda row: f"{row['seconds'][OURS]['step']:.1f}"),
    ("whole run", lambda row: f"{row['speedup']:.2f}x"), ("convolutions", lambda row: f"{row['conv_speedup']:.2f}x"),
    (f"torch: {', '.join(PARTS)}, rest s", lambda row: _parts(row, row["best"])),
    ("ours", lambda row: _parts(row, OURS)),
    (
        "at the same weights: loss, gradient apart",
        lambda row: ", ".join(f"{row['same_weights'][OURS][key]:.0e}" for key in ("loss", "gradient")),
    ),
    (
        "losses of two runs apart: ours, torch's other format",
        lambda row: f"{row['loss_apart']:.1e}, {row['loss_apart_torch']:.1e}",
    ),
    ("loss, first to last", lambda row: f"{row['loss_first']:.2f} to {row['loss_last']:.2f}"),
    (
        "accuracy: torch channels_last, contiguous, ours",
        lambda row: ", ".join(f"{row['accuracy'][key]:.1%}" for key in (CHANNELS_LAST, CONTIGUOUS, OURS)),
    ),
)  # fmt: skip


def _layers(row: dict[str, Any]) -> list[list[str]]:
    """Shares of zeros at every convolution but the first; their means where the layers are too many for a page."""
    name = row["network"]
    layers = list(zip(*(log["layers"] for log in row["zeros"]), strict=True))[1:]
    if name.startswith("vgg"):
        return [[name, found[0]["layer"], *(f"{log[side]:.0%}" for log in found for side in SIDES)] for found in layers]
    means = [statistics.mean(log[side] for log in logs) for logs in zip(*layers, strict=True) for side in SIDES]
    return [[name, f"mean of {len(layers)}", *(f"{mean:.0%}" for mean in means)]]


def zeros(rows: Rows) -> str:
    sides = [f"epoch {log['epoch']}: {side}" for log in rows[0]["zeros"] for side in SIDES.values()]
    return lines(["network", "convolution", *sides], [line for row in rows for line in _layers(row)])


SECTION = Section(rows, Table(COLUMNS), {"zeros": Table(zeros, note="")}, on_gpu=False)

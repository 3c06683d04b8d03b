"""SparseTrain on the digits, enlarged: VGG-16 trains, and skips the zeros that its own ReLUs make."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.conv.images import digits
from gossamer.bench.conv.networks import CHANNELS_LAST, CONTIGUOUS, OURS, PLAIN, TOY, arms, inference_step
from gossamer.bench.conv.training import log_zeros, start
from gossamer.bench.step import training_step
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.report.quantity import percent

NETWORK, SIDE, BATCH, STEPS, RATE = "vgg16_plain", 64, 16, 30, 0.003


def fastest(calls: dict[str, Callable[[], Any]], ours: str, quick: bool) -> dict[str, Any]:
    """Ours over the faster of torch's memory formats."""
    dense = [name for name in calls if name != ours]
    reps, seconds = (5, 1.0) if quick else (9, 12.0)
    trial = gs.measure.interleave({name: calls[name] for name in dense}, reps=2, warmup=1)
    best = min(trial.rows, key=lambda row: row.median).name
    return gs.measure.interleave(calls, baseline=best, reps=reps, warmup=1, seconds=seconds).to_dict()


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """The losses of some steps."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    losses = []
    for step in range(steps):
        part = slice(step * BATCH % (len(x) - BATCH), step * BATCH % (len(x) - BATCH) + BATCH)
        losses.append(training_step(net, optimizer, x[part], y[part])().item())
    return losses


def run(folder: Path, say: Say, quick: bool) -> Outcome:
    side, steps = (32, 2) if quick else (SIDE, STEPS)
    data = digits(side, seed=0)
    x, y = data.train_x[:BATCH], data.train_y[:BATCH]
    options = TOY[NETWORK] if quick else {"head": (512,)}
    torch.manual_seed(0)
    model = gs.models.build(NETWORK, input_shape=(3, side, side), classes=10, **options)
    start(model)
    say("training VGG-16 on the digits")
    made = arms(model, x)
    ours = made[OURS][0]
    losses = trained(ours, data.train_x.contiguous(memory_format=torch.channels_last), data.train_y, steps)
    for name in (CHANNELS_LAST, CONTIGUOUS, PLAIN):
        made[name][0].load_state_dict(ours.state_dict())
    say("timing training steps in turns")
    zeros = log_zeros(made[CONTIGUOUS][0], x, y)
    still = {
        name: training_step(net, torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9), image, y)
        for name in (CHANNELS_LAST, CONTIGUOUS, OURS) for net, image, _ in [made[name]]
    }  # fmt: skip
    training = fastest(still, OURS, quick)
    say("timing predictions of images that are not channels_last")
    seen = {name: inference_step(made[name][0].eval(), made[name][1]) for name in (CHANNELS_LAST, CONTIGUOUS, PLAIN)}
    for _ in range(1 if quick else 12):
        seen[PLAIN]()  # its tuners settle
    shown = fastest(seen, PLAIN, quick)
    gain = Timed(
        f"one training step of VGG-16 on {BATCH} digits of {side} x {side} pixels, at the weights that it has then",
        OURS, training,
    )  # fmt: skip
    loses = Timed("predictions for contiguous images, torch's default, which each layer must turn first", PLAIN, shown)
    inputs, gradients = (statistics.fmean(each[key] for each in zeros[1:]) for key in ("x", "dy"))
    facts = (
        (percent(inputs, 0), "zeros in what its convolutions read, the first one aside"),
        (percent(gradients, 0), "zeros in the gradients that come back to them"),
        (f"{losses[-1]:.2f}", f"loss after {steps} steps, from {losses[0]:.2f}"),
    )
    return Outcome(gain, loses, facts)


CARD = Card(
    "SparseTrain",
    "My activations are zero: convolutions that skip what ReLU made",
    "After a ReLU more than half of the numbers are zeros, in the input of the next layer and in the gradient that "
    "comes back. These kernels skip them, forward and in both backward passes, without a loss of a bit of the answer.",
    "It loses on contiguous images, and with BatchNorm before the ReLU the gradients have no zeros.",
    """
model = model.to(memory_format=torch.channels_last)
report = gs.nn.skip_zeros(model)
...  # your training loop, as it is
print(report)
""",
    "docs/skip_zeros.md",
    run,
)

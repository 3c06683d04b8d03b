"""A small run that takes a second: 80 points, a perceptron with BatchNorm and dropout, 4 steps an epoch, 3 epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.cli.__main__ import main

# The hook runs in every backward of training and nowhere else. It raises real signals at a chosen step, or waits
# for one from outside. Steps are counted over the dense and the sparse network.
NETWORK = """
import os, signal, time
import torch
from torch import nn

def net(input_shape, classes):
    model = nn.Sequential(
        nn.Linear(input_shape[0], 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.25),
        nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, classes))
    model[0].weight.register_hook(seen)
    return model

def seen(gradient):
    steps = int(os.environ.get("STEPS", 0)) + 1
    os.environ["STEPS"] = str(steps)
    if steps == int(os.environ.get("STOP_AT", 0)):
        os.kill(os.getpid(), getattr(signal, os.environ.get("STOP_WITH", "SIGINT")))
    if steps == int(os.environ.get("NAN_AT", 0)):
        return gradient * float("nan")
    if steps == int(os.environ.get("WAIT_AT", 0)):
        handler, come = signal.getsignal(signal.SIGINT), []
        signal.signal(signal.SIGINT, lambda *what: (handler(*what), come.append(what)))
        open("waiting", "w").close()
        while not come:
            time.sleep(0.01)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with data.npz and net.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "0")  # what the hook counts ends with the test
    generator = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = generator.normal(size=(80, 6)) + 2.0 * np.eye(4, 6)[y]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


TINY = ("--data", "npz:data.npz", "--model", "net.py:net", "--epochs", "3", "--batch-size", "16", "--density", "0.2",
        "--update-every", "2", "--reps", "0", "--no-events")  # fmt: skip


@pytest.fixture
def train(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `gossamer train` in this process with the small run's flags and more."""

    def run(*more: str) -> int:
        monkeypatch.setenv("STEPS", "0")
        return main(["train", *TINY, *more])

    return run


def same(a: object, b: object, path: str = "") -> None:
    """Assert that two nested states are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert isinstance(b, dict) and list(a) == list(b), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b), path
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{path}[{i}]")
    else:
        assert a == b, path

"""A run that was stopped and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .conftest import TINY, same


def _end(out: str, stage: str) -> dict:
    return torch.load(Path(out) / stage / "checkpoint.pt", weights_only=True)


def _accuracies(out: str) -> list:
    return [entry["accuracy"] for entry in json.loads((Path(out) / "report.json").read_text())["table"].values()]


# In the first step, at the end of an epoch, between the two networks, in the second network, at the very end.
@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--method", "chase"), (1, 12, 17)),
        (("--method", "chase", "--compact-every", "1"), (12, 22)),
        (("--method", "rigl"), (8, 18, 24)),
    ],
)
def test_stopped_anywhere_and_resumed(
    train: Callable[..., int],
    flags: tuple[str, ...],
    steps: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert train("--out", "whole", *flags) == 0
    for step in steps:
        monkeypatch.setenv("STOP_AT", str(step))
        assert train("--out", "parts", *flags) == 128 + signal.SIGINT
        monkeypatch.delenv("STOP_AT")
        said = capfd.readouterr().err
        assert " ".join((*flags, "--resume")) in said.replace("\n", " ")
        assert not (Path("parts") / "report.html").exists()
        assert train("--out", "parts", *flags, "--resume") == 0
        for stage in ("dense", "sparse"):
            same(_end("parts", stage), _end("whole", stage))
        assert _accuracies("parts") == _accuracies("whole")
        shutil.rmtree("parts")
    assert train("--out", "whole", *flags, "--resume") == 0  # nothing left to do but the report


def test_a_signal_from_outside(train: Callable[..., int]) -> None:
    """The real thing: another process, a signal sent to it, the printed command typed in again."""
    assert train("--out", "whole") == 0
    command = [sys.executable, "-m", "gossamer.cli"]
    slow = subprocess.Popen(
        [*command, "train", *TINY, "--out", "run"],
        env={**os.environ, "WAIT": "0.2", "STEPS": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(Path("run/dense/checkpoint.pt"), slow)
    slow.send_signal(signal.SIGINT)
    _, said = slow.communicate()
    assert slow.returncode == 128 + signal.SIGINT and "Traceback" not in said
    (again,) = (line.split() for line in said.splitlines() if line.startswith("  gossamer train"))
    assert subprocess.run([*command, *again[1:]], capture_output=True).returncode == 0
    for stage in ("dense", "sparse"):
        same(_end("run", stage), _end("whole", stage))


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        with pytest.raises(subprocess.TimeoutExpired):  # it has not ended
            process.wait(0.02)


def test_sigterm_stops_between_steps_too(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", "3")
    monkeypatch.setenv("STOP_WITH", "SIGTERM")
    assert train("--out", "run") == 128 + signal.SIGTERM
    assert _end("run", "dense")["step"] == 3


def test_resume_of_nothing_starts(train: Callable[..., int]) -> None:
    assert train("--out", "new", "--resume") == 0


def test_the_handlers_of_before_are_back(train: Callable[..., int]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert train("--out", "run") == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_checkpoint_is_plain_data(train: Callable[..., int]) -> None:
    assert train("--out", "run") == 0
    assert set(_end("run", "sparse")) >= {"identity", "step", "model", "optimizer", "method", "curve"}


def test_the_curve_has_the_mean_loss_of_each_epoch(train: Callable[..., int]) -> None:
    assert train("--out", "run", "--lr", "1e-9", "--warmup", "0") == 0
    # Weights that hardly move: every epoch's mean is the loss of the untrained network, up to dropout and batches.
    losses = [point["loss"] for point in _end("run", "dense")["curve"][1:]]
    assert len(losses) == 3 and max(losses) < 1.2 * min(losses) and 1.2 < min(losses) < 1.7  # log(4) is 1.39

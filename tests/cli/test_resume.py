"""A run that was stopped and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked

from gossamer import files
from gossamer.cli.__main__ import main
from gossamer.cli.stop import catch_signals
from gossamer.cli.train import checkpoint, folder, recipe, record
from gossamer.cli.train.config import DIGEST

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
        assert "  gossamer train --resume parts\n" in said
        assert not (Path("parts") / "report.html").exists()
        monkeypatch.setenv("STEPS", "0")
        assert main(["train", "--resume", "parts"]) == 0, "its folder alone is enough"
        for stage in ("dense", "sparse"):
            same(_end("parts", stage), _end("whole", stage))
        assert _accuracies("parts") == _accuracies("whole")
        shutil.rmtree("parts")
    assert train("--out", "whole", *flags, "--resume") == 0  # nothing left to do but the report


def test_a_signal_from_outside(train: Callable[..., int]) -> None:
    """The real thing: a process of its own, a signal sent to it, the command that it printed."""
    assert train("--out", "whole") == 0
    slow = Forked(["train", *TINY, "--out", "run"], WAIT_AT="6", STEPS="0")
    while not Path("waiting").exists():
        slow.process.join(0.02)
        assert slow.process.is_alive(), slow.errors
    slow.send_signal(signal.SIGINT)
    code, _, said = slow.end()
    assert code == 128 + signal.SIGINT and "Traceback" not in said and _end("run", "dense")["step"] == 6
    (again,) = (line.split() for line in said.splitlines() if line.startswith("  gossamer train"))
    assert main(again[1:]) == 0
    for stage in ("dense", "sparse"):
        same(_end("run", stage), _end("whole", stage))


def test_sigterm_stops_between_steps_too(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_AT", "3")
    monkeypatch.setenv("STOP_WITH", "SIGTERM")
    assert train("--out", "run") == 128 + signal.SIGTERM
    assert _end("run", "dense")["step"] == 3


@pytest.mark.parametrize("moment", ["the last accuracy", "the last save"])
def test_a_signal_after_the_last_step_is_not_lost(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Of the dense network: the sparse one is not begun, and the resumed run ends as one that was not stopped."""
    assert train("--out", "whole") == 0
    module, name = (record, "epoch") if moment == "the last accuracy" else (checkpoint, "save")
    real = getattr(module, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        step = arguments[0].step if module is record else arguments[1]["step"]
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, signalled)
    assert train("--out", "parts") == 128 + signal.SIGINT
    assert _end("parts", "dense")["step"] == 12 and not Path("parts/sparse").exists()
    monkeypatch.setattr(module, name, real)
    assert train("--out", "parts", "--resume") == 0
    for stage in ("dense", "sparse"):
        same(_end("parts", stage), _end("whole", stage))


def test_a_second_signal_while_saving_leaves_the_checkpoint_of_before(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one stops at step 7; the second comes while that is being saved, in the middle of the file or later."""
    assert train("--out", "whole") == 0
    for owner, name in ((files.Writer, "write"), (os, "fsync"), (os, "replace")):
        _signal_twice(train, monkeypatch, owner, name)
        shutil.rmtree("parts")


def _signal_twice(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    monkeypatch.setenv("STOP_AT", "7")
    real, seen = getattr(owner, name), [0]

    def signalled(*arguments: Any) -> Any:
        if os.environ["STEPS"] == "7":
            seen[0] += 1
            if seen[0] == 1:
                os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(owner, name, signalled)
    assert train("--out", "parts") == 128 + signal.SIGINT and seen[0]
    monkeypatch.setattr(owner, name, real)
    monkeypatch.delenv("STOP_AT")
    assert _end("parts", "dense")["step"] == 4 and os.listdir("parts/dense") == ["checkpoint.pt"]
    assert train("--out", "parts", "--resume") == 0
    for stage in ("dense", "sparse"):
        same(_end("parts", stage), _end("whole", stage))


@pytest.mark.parametrize(("run_id", "patience"), [(None, 1), ("a", 2)])
def test_one_ctrl_c_under_torchrun_is_two_signals(
    monkeypatch: pytest.MonkeyPatch, run_id: str | None, patience: int
) -> None:
    """The terminal signals every process, and torchrun those that it started once more; neither is impatience."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if run_id:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    with catch_signals() as stop:
        for _ in range(patience):
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGINT, "the first one says how the run ended"


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


@pytest.mark.parametrize("flags", [("--method", "chase", "--compact-every", "1"), ("--method", "gradual")])
def test_a_run_goes_on_for_more_epochs(
    place: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run of 3 epochs, 4 steps each, becomes one of 5, and is stopped on the way."""
    monkeypatch.setattr(recipe, "UPDATES", 6)  # every second step of 12, every third of 20
    at = TINY.index("--update-every")
    assert main(["train", *TINY[:at], *TINY[at + 2 :], *flags, "--out", "run"]) == 0
    before = {stage: _end("run", stage) for stage in ("dense", "sparse")}
    monkeypatch.setenv("STEPS", "0")
    monkeypatch.setenv("STOP_AT", "11")  # the third step of the sparse network, after 8 of the dense one
    assert main(["train", "--resume", "run", "--epochs", "5"]) == 128 + signal.SIGINT
    monkeypatch.delenv("STOP_AT")
    assert main(["train", "--resume", "run"]) == 0, "the longer run is the run from now on"
    for stage, saved in before.items():
        end = _end("run", stage)
        assert (saved["step"], end["step"]) == (12, 20) and end["curve"][: len(saved["curve"])] == saved["curve"]
    there, here = (found["method"]["config"] for found in (saved, end))
    assert (there["total_steps"], here["total_steps"]) == (12, 20) and there["update_every"] == here[
        "update_every"
    ] == 2
    assert [entry for entry in end["method"]["history"] if entry["step"] <= 12] == saved["method"]["history"]
    capfd.readouterr()
    assert main(["train", "--resume", "run", "--epochs", "4"]) == 2
    assert "other settings: epochs 5 (now 4)" in capfd.readouterr().err


def test_a_run_does_not_go_on_with_other_data(
    train: Callable[..., int], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One number of one example is enough. A run of before this was written down goes on, and is asked from then on."""
    monkeypatch.setenv("STOP_AT", "6")
    assert train("--out", "run") == 128 + signal.SIGINT
    monkeypatch.delenv("STOP_AT")
    whole = (place / "data.npz").read_bytes()
    arrays = dict(np.load(place / "data.npz"))
    arrays["x"][7, 2] += 1
    np.savez(place / "data.npz", **arrays)
    capfd.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    said = capfd.readouterr().err
    assert "what --data npz:data.npz holds has changed since" in said and "another --out" in said
    assert said.count("\n") == 1
    assert main(["train", "--resume", "run", "--seed", "1"]) == 2 and "seed 0 (now 1)" in capfd.readouterr().err
    (place / "data.npz").write_bytes(whole)
    record = folder.TRAIN.record.read(Path("run"))
    identity = {name: value for name, value in record["identity"].items() if name != DIGEST}
    assert identity != record["identity"]
    folder.TRAIN.record.write(Path("run"), identity=identity, settings=record["settings"])
    saved = _end("run", "dense")
    checkpoint.save(Path("run/dense/checkpoint.pt"), {**saved, "identity": identity})
    assert main(["train", "--resume", "run"]) == 0
    assert folder.TRAIN.record.read(Path("run"))["identity"][DIGEST] == record["identity"][DIGEST]

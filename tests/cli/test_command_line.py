"""The face of the commands: flags that do not change by accident, help without the extras, bars only on terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import CLI, Forked

import gossamer as gs
from gossamer.cli.__main__ import main

from .conftest import TINY

FLAGS = (Path(__file__).parent / "train_flags.txt").read_text().split()


def _help(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([*argv, "--help"])
    assert leaving.value.code == 0
    return capfd.readouterr().out


def test_the_flags_of_train_are_these(capfd: pytest.CaptureFixture[str]) -> None:
    """Renaming a flag breaks scripts and the printed resume commands: change train_flags.txt on purpose only."""
    said = _help(capfd, "train")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said)) - {"--nproc-per-node"} == set(FLAGS)


def test_every_flag_is_explained_in_help_and_in_the_docs(capfd: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    said = _help(capfd, "train")
    for flag in FLAGS:
        if not flag.startswith("--no-") and flag != "--help":
            assert f"`{flag}" in page, flag
    # Each field's docstring reaches the help: the last one stands for all.
    assert "Show the traceback of an error." in said


def test_top_level(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--help"]) == 0
    out = capfd.readouterr().out
    commands = {
        "tour",
        "profile",
        "train",
        "bench",
        "tune",
        "xmc",
        "model",
        "generate",
        "calibrate",
        "route",
        "serve",
        "doctor",
    }
    assert set(re.findall(r"^  (\w+) ", out, re.MULTILINE)) - {"gossamer"} == commands | {"version"}
    assert len(out.splitlines()) <= 2 * 40 and max(map(len, out.splitlines())) <= 100, "one screen"
    assert main(["version"]) == 0
    assert capfd.readouterr().out.strip() == gs.__version__


def test_doctor_and_version_need_no_extra(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tyro", "tqdm", "sklearn", "PIL", "safetensors", "triton", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["doctor"]) == 0 and main(["version"]) == 0
    assert "torch" in capfd.readouterr().out


ON_TERMINAL = "import os\nos.dup2(os.open(os.environ['TERMINAL'], os.O_RDWR), 2)\n"


def test_a_run_from_the_shell(place: Path) -> None:
    """Its stderr is a terminal, which gets a bar; elsewhere there is none, as the next test shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))  # a new terminal has no width
    words = ["train", *TINY, "--out", "run", "--reps", "5", "--events"]
    run = Forked(words, ON_TERMINAL + CLI, TERMINAL=os.ttyname(theirs))
    bar, runs = b"", True
    while runs:
        runs = run.process.is_alive()  # asked before what it said last is read
        while select.select([ours], [], [], 0.02)[0]:
            bar += os.read(ours, 4096)
    code, said, _ = run.end()
    os.close(theirs)
    os.close(ours)
    assert code == 0 and b"12/12" in bar and b"accuracy" in bar, bar
    lines = said.splitlines()
    assert lines[0].split() == ["dense", "sparse", "compact"]
    for row in ("test accuracy", "parameters", "nonzeros", "FLOPs", "bytes", "latency, batch 1", "throughput"):
        assert any(line.startswith(row) for line in lines), row
    assert "A/A control" in said and "is no faster than the dense one" in re.sub(r"\s+", " ", said)
    assert sorted(p.name for p in (place / "run").iterdir()) == [
        "compact", "dense", "events", "report.html", "report.json", "run.json", "sparse",
    ]  # fmt: skip
    assert list((place / "run" / "events" / "sparse").glob("events.out.tfevents.*"))


def test_no_bar_elsewhere(train: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert train("--out", "run") == 0
    assert capfd.readouterr().err == ""


def test_modules_where_it_was_called(place: Path, train: Callable[..., int]) -> None:
    (place / "mine.py").write_text("import torch\ndef net(classes):\n    return torch.nn.Linear(6, classes)\n")
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(place))]
    assert train("--out", "run", "--method", "set", "--model", "mine:net") == 0

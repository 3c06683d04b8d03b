"""A small run that takes a second: 80 points, a perceptron with BatchNorm and dropout, 4 steps an epoch, 3 epochs."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.cli.__main__ import main

# Processes forked from one that has imported the commands, which takes seconds. They are real for signals, exit codes,
# files and ranks; what a process imports, and in which order, is a matter for tests that begin one from nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["gossamer.cli.train.command", "gossamer.cli.xmc.command", "sklearn.datasets", "torch._dynamo", "tyro"]
)
CLI = "import sys\nfrom gossamer.cli.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
BEGIN = """
import os, sys
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for number, path in enumerate(said, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.argv = argv
exec(program, {"__name__": "__main__"})
"""


class Forked:
    """A process of its own in the current folder, which runs a program with these arguments and variables."""

    def __init__(self, argv: Sequence[str], program: str = CLI, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = [os.path.join(self._folder.name, name) for name in ("out", "err")]
        variables = {**os.environ, **environment}
        scope = {"folder": os.getcwd(), "environment": variables, "said": self._said, "argv": ["-", *argv]}
        scope["program"] = program
        self.process = SERVER.Process(target=exec, args=(BEGIN, scope), daemon=True)  # it ends with the tests
        self.process.start()

    def end(self) -> tuple[int, str, str]:
        """Its exit code, below 0 for a signal, and what it said on stdout and stderr."""
        self.process.join(200)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it does not end: {Path(self._said[1]).read_text()}")
        out, err = (Path(path).read_text() for path in self._said)
        self._folder.cleanup()
        return self.process.exitcode, out, err


def ranks(argv: Sequence[str], program: str = CLI, **environment: str) -> list[tuple[int, str, str]]:
    """The ends of two processes that know each other as those of a torchrun do: by the store that started them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    both = [Forked(argv, program, RANK=rank, LOCAL_RANK=rank, **environment) for rank in ("0", "1")]
    return [each.end() for each in both]


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

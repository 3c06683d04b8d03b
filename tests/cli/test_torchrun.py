"""Two processes, as torchrun starts them, do the work of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from forked import ranks

from .conftest import TINY, same


def _two(*flags: str, **environment: str) -> tuple[list[int], str, str]:
    """The exit codes of two processes, and what both have said."""
    codes, out, err = zip(*ranks(["train", *TINY, *flags], **environment), strict=True)
    return list(codes), "".join(out), "".join(err)


def _end(out: Path, stage: str) -> dict:
    return torch.load(out / stage / "checkpoint.pt", weights_only=True)


def test_one_report_and_the_weights_of_one_process(place: Path, train: Callable[..., int]) -> None:
    # No BatchNorm and no dropout: each process sees half of the batch, so their statistics and draws would differ.
    (place / "net64.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, input_shape, classes):\n"
        "        super().__init__()\n"
        "        layers = nn.Linear(input_shape[0], 24), nn.ReLU(), nn.Linear(24, classes)\n"
        "        self.layers = nn.Sequential(*layers).double()\n"
        "    def forward(self, x):\n"
        "        return self.layers(x.double())\n"
    )
    flags = ("--model", "net64.py:Net", "--method", "rigl")
    codes, out, err = _two(*flags, "--out", "two")
    assert codes == [0, 0], err
    assert out.count("report: two/report.html") == 1
    assert train(*flags, "--out", "one") == 0
    for stage in ("dense", "sparse"):
        two, one = _end(place / "two", stage), _end(place / "one", stage)
        for name, tensor in one["model"].items():
            # float64: the two halves of a batch are added in another order, 12 steps; 1e-12 is 4500 roundings.
            torch.testing.assert_close(two["model"][name], tensor, rtol=1e-12, atol=1e-12)
    same(_end(place / "two", "sparse")["method"]["masks"], _end(place / "one", "sparse")["method"]["masks"])


def test_stopped_in_both_and_resumed(place: Path) -> None:
    """By a real torchrun, whose own way to pass on a signal and an end is part of it."""
    codes, _, err = _two("--out", "whole")
    assert codes == [0, 0], err
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "gossamer.cli", "train", *TINY, "--out", "parts"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STOP_AT": "17"}
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert stopped.returncode != 0 and stopped.stderr.count("resume with:") == 1
    assert _end(place / "parts", "sparse")["step"] == 5
    codes, _, err = _two("--out", "parts", "--resume")
    assert codes == [0, 0], err
    for stage in ("dense", "sparse"):
        same(_end(place / "parts", stage), _end(place / "whole", stage))


def test_an_error_is_said_once(place: Path) -> None:
    codes, _, err = _two("--out", "run", "--batch-size", "15")
    assert all(codes)
    assert err.count("gossamer: error: --batch-size is 15; expected a multiple of the 2 processes") == 1
    assert not (place / "run").exists()

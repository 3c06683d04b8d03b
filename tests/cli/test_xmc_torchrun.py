"""`gossamer xmc train` in two processes, as torchrun starts them: labels are divided, the numbers are those of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from forked import ranks

from gossamer.cli.__main__ import main
from gossamer.xmc import load

FLAGS = ["--epochs", "3", "--batch-size", "16", "--fan-in", "8", "--width", "32", "--rewire-every", "5",
         "--clusters", "4", "--group", "16", "--frequent", "0.2", "--intermediate", "40"]  # fmt: skip

# Runs the command line; the process that is named sends itself a signal in the step that is named.
DRIVER = """
import os, signal, sys
from gossamer.cli.__main__ import main
from gossamer.xmc.fit import Fit

learn = Fit.learn

def learn_and_stop(fit, *arguments):
    loss = learn(fit, *arguments)
    if fit.step == int(sys.argv[1]) and os.environ["RANK"] == sys.argv[2]:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return loss

Fit.learn = learn_and_stop
sys.exit(main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for part, rows in (("trn", 160), ("tst", 40)):
        chosen = [sorted({(7 * i) % 80, (7 * i + i % 5) % 80}) for i in range(rows)]
        (folder / f"{part}_X.txt").write_text("".join(" ".join(f"word{j}" for j in row) + "\n" for row in chosen))
        lines = "".join(" ".join(f"{j}:1" for j in row) + "\n" for row in chosen)
        (folder / f"{part}_X_Y.txt").write_text(f"{rows} 80\n{lines}")
    return folder


@pytest.fixture(scope="module")
def one(sets, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert main(["xmc", "train", str(sets), "--out", str(out), *FLAGS]) == 0
    return out


def torchrun(sets, out, *flags, step=0, rank=0, number="SIGINT"):
    driver = out.parent / "driver.py"
    driver.write_text(DRIVER)
    words = [str(driver), str(step), str(rank), number, "xmc", "train", str(sets), "--out", str(out), *FLAGS, *flags]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def assert_close(out, one):
    """Sums of two halves are rounded otherwise than sums of all: connections are the same, numbers near."""
    curves = [json.loads((each / "report.json").read_text())["curve"] for each in (out, one)]
    for a, b in zip(*curves, strict=True):
        assert a["step"] == b["step"] and abs(a["loss"] - b["loss"]) < 1e-3 * b["loss"]
    mine, theirs = (load(each / "classifier") for each in (out, one))
    a, b = ({**each.encoder.state_dict(), **each.head.state_dict()} for each in (mine, theirs))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.is_floating_point():
            assert float((value - b[name]).abs().mean()) < 1e-3 * float(b[name].abs().mean() + 1e-3), name
        elif name.endswith("indices"):
            assert float((value.int() == b[name].int()).float().mean()) > 0.99, name


def test_stopped_in_both_and_resumed_by_one(sets, one, tmp_path):
    """What two processes have saved, one goes on with."""
    out = tmp_path / "run"
    codes, _, said = zip(
        *ranks(["13", "1", "SIGINT", "xmc", "train", str(sets), "--out", str(out), *FLAGS], DRIVER), strict=True
    )
    assert codes == (128 + signal.SIGINT,) * 2 and "".join(said).count("stopped at step 13 of 27") == 1
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 13
    assert main(["xmc", "train", str(sets), "--out", str(out), *FLAGS, "--resume"]) == 0
    assert_close(out, one)


@pytest.mark.slow
def test_two_processes_end_what_one_began(sets, one, tmp_path):
    out = tmp_path / "run"
    words = ["xmc", "train", str(sets), "--out", str(out), *FLAGS]
    code = DRIVER.replace('os.environ["RANK"]', '"0"')
    stopped = subprocess.run([sys.executable, "-c", code, "4", "0", "SIGTERM", *words], capture_output=True)
    assert stopped.returncode == 128 + signal.SIGTERM
    done = torchrun(sets, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1 and len(list((out / "classifier").rglob("share-*-1"))) == 2
    assert_close(out, one)
    sizes = [json.loads((each / "report.json").read_text())["bytes"] for each in (out, one)]
    order = 4 * 80 + 2 * 8  # each process has the order of all labels, and counts steps
    assert sizes[0] == {**sizes[1], "head": sizes[1]["head"] + order}


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_goes_on(sets, one, tmp_path):
    out = tmp_path / "run"
    assert torchrun(sets, out, step=13, rank=1, number="SIGKILL").returncode != 0
    assert torchrun(sets, out, "--resume").returncode == 0
    assert_close(out, one)


@pytest.mark.slow
def test_an_error_ends_all_and_is_said_once(sets, tmp_path):
    done = torchrun(sets, tmp_path / "run", "--fan-in", "64")
    assert done.returncode != 0
    assert done.stderr.count("gossamer: error: fan_in must be at most the width of 40, got 64") == 1
    assert not (tmp_path / "run").exists()

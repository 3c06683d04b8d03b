"""Wrong command lines of newcomers: one sentence each that says what was expected, exit status 2, nothing written."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.cli.__main__ import main
from gossamer.cli.bench import Bench
from gossamer.cli.generate import Generate
from gossamer.cli.mistakes import flags, mistake
from gossamer.cli.train.config import Train

from .conftest import same
from .test_errors import _files, _one_line

IMAGES = ("train/a", "part/train/a", "part/train/b", "part/test/a", "part/test/b", "part/test/c", "held/val/a",
          "alone/train/a", "alone/train/b")  # fmt: skip

LINES = (
    # commands and flags
    ("trian", "there is no command 'trian'; expected tour,"),
    ("trian", "did you mean train?"),
    ("Train", "did you mean train?"),
    ("--verison", "did you mean version?"),
    ("version now", "gossamer version takes no flags; 'now' was given"),
    ("xmc dta", "there is no command xmc 'dta'; expected data, train, evaluate, predict or subset; did you mean data?"),
    ("xmc data stdlb", "there is no source 'stdlb'; expected stdlib, debtags or planted; did you mean stdlib?"),
    ("xmc train", "DATA is missing"),
    ("xmc train --enocder bow x", "there is no flag '--enocder'; did you mean --encoder?"),
    ("xmc train x --epochs 0", "error: epochs must be an integer of at least 1, got 0 (gossamer xmc train --help"),
    ("xmc train x --read all", "error: --read is 'all'; expected auto, texts or features (gossamer xmc train --help"),
    ("xmc evaluate nowhere part", "there is no folder nowhere; expected that of a run, or of a classifier"),
    ("xmc evaluate part part --json net.py/a.json", "net.py is a file, not a folder"),
    ("xmc data stdlib --out net.py/sub", "net.py is a file, not a folder"),
    ("route tran", "did you mean train?"),
    ("route profile --lenght 5 m", "did you mean --length?"),
    ("generate", "MODEL is missing"),
    ("generate m --prmpt hi", "there is no flag '--prmpt'; did you mean --prompt?"),
    ("generate m --prompt hi --dtype half", "--dtype is 'half'; expected one of float32, bfloat16, float16"),
    ("calibrate m", "--out is missing"),
    ("calibrate m --out x --text no.txt", "--text no.txt cannot be read: No such file or directory"),
    ("calibrate m --out x --text train", "--text train cannot be read: it is a folder"),
    ("calibrate m --out x --text data.npz", "--text data.npz is not a text in UTF-8"),
    ("calibrate m --out x --device gpu", "--device is 'gpu'; expected cpu, cuda or cuda:N"),
    ("calibrate m --out net.py/heads.tsv", "net.py is a file, not a folder"),
    ("generate m --prompt-file no.txt", "--prompt-file no.txt cannot be read: No such file or directory"),
    ("generate m --prompt hi --pattern no.tsv", "--pattern no.tsv says which heads stream, but --static is 0"),
    ("serve m --prot 1", "did you mean --port?"),
    ("serve m --prefixes -1", "--prefixes must be at least 0, got -1"),
    ("serve m --port x", "--port is 'x'; expected a whole number"),
    ("model smollm2 --wheel no.whl", "--wheel no.whl cannot be read: No such file or directory"),
    ("tune --device gpu", "--device is 'gpu'; expected one of cpu, cuda"),
    ("tune --threads 100000000", "--threads must be at most"),
    ("tune --cache net.py", "net.py is a file, not a folder"),
    ("bench matmull", "SUITE is 'matmull'; expected one of"),
    ("bench matmull", "did you mean matmul?"),
    ("route profile m --html net.py/page.html", "net.py is a file, not a folder"),
    ("route train --out net.py", "net.py is a file, not a folder"),
    ("route train --folder nowhere --out x", "there is no folder nowhere"),
    ("route train --batch 0 --out x", "--batch must be at least 1, got 0"),
    # `gossamer train`: flags and values
    ("train -density 0.1", "there is no flag '-density'; did you mean --density?"),
    ("train --no-dens", "did you mean --no-dense?"),
    ("train --density", "--density has no value; expected a number"),
    ("train --density=ten", "--density is 'ten'; expected a number"),
    ("train --density 10%", "--density is '10%'; expected a number"),
    ("train --epochs 0.5", "--epochs is '0.5'; expected a whole number"),
    ("train --out --epochs 3", "--out has no value; expected a path"),
    ("train --dense false", "--dense takes no value, got 'false'; --no-dense turns it off"),
    ("train density=0.5", "'density=0.5' belongs to no flag; did you mean --density?"),
    ("train more", "'more' belongs to no flag"),
    ("train --threads 100000000", "--threads must be at most"),
    ("train --method Chase", "did you mean chase?"),
    ("train --density 1 --data npz:data.npz --model net.py:net", "--density is 1.0; expected"),
    ("train --out net.py/run", "net.py is a file, not a folder"),
    ("train --resume nowhere", "--resume nowhere: there is no run there to continue"),
    ("train --resume nowhere --out here", "--resume nowhere and --out here are two folders"),
    ("train --resume train", "--resume train holds files but no run.json"),
    # its data
    ("train --data digist", "did you mean digits?"),
    ("train --data part", "did you mean imagefolder:part?"),
    ("train --data data.npz", "did you mean npz:data.npz?"),
    ("train --data imagefolder:net.py", "net.py is a file; expected a folder of classes"),
    ("train --data imagefolder:part", "part has the classes ['c'] in part/test only"),
    ("train --data imagefolder:held", "held holds val and no train beside it"),
    ("train --data imagefolder:alone", "alone holds train and no test or val beside it; expected both, or"),
    ("train --data npz:upper.npz", "holds the arrays ['X', 'Y']; expected x and y"),
    ("train --data npz:upper.npz", "np.savez('upper.npz', x=X, y=Y)"),
    ("train --data npz:x.npy", "x.npy is one array (.npy); expected an archive of x and y"),
    ("train --data npz:names.npz", "names become numbers by np.unique(y, return_inverse=True)[1]"),
    ("train --data npz:hot.npz", "a column for each class becomes labels by y.argmax(1)"),
    ("train --data npz:column.npz", "y.ravel() has it"),
    ("train --data npz:below.npz", "the label -1; labels number the classes from 0"),
    # its network
    ("train --data npz:data.npz --model net.py", "did you mean net.py:FACTORY?"),
    ("train --data npz:data.npz --model convent", "did you mean convnet?"),
    ("train --data npz:data.npz --model made.py:made", "is a Linear, a network already"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wrong lines name."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("wrong")
    for name in IMAGES:
        (root / name).mkdir(parents=True)
        image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(root / name / "1.png")
    x, y = np.random.default_rng(0).normal(size=(80, 6)), np.arange(80) % 4
    np.save(root / "x.npy", x)
    for name, arrays in {
        "data": {"x": x, "y": y}, "upper": {"X": x, "Y": y}, "names": {"x": x, "y": np.array(list("abcd"))[y]},
        "hot": {"x": x, "y": np.eye(4)[y]}, "column": {"x": x, "y": y[:, None]}, "below": {"x": x, "y": y - 1},
    }.items():  # fmt: skip
        np.savez(root / f"{name}.npz", **arrays)
    (root / "net.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, classes):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], 32), nn.ReLU(), nn.Linear(32, classes))\n"
    )
    (root / "made.py").write_text("from torch import nn\nmade = nn.Linear(6, 4)\n")
    return root


@pytest.mark.parametrize(("line", "said"), LINES)
def test_one_sentence_and_nothing_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    monkeypatch.chdir(folder)
    before = {*_files(folder), *folder.rglob("*")}
    assert main(shlex.split(line)) == 2
    shown = _one_line(capfd.readouterr().err)
    assert said in shown and "[Errno" not in shown and "--- " not in shown
    assert {path for path in {*_files(folder), *folder.rglob("*")} if "__pycache__" not in str(path)} == before


@pytest.mark.parametrize("command", ["doctor", "version", "xmc", "route", "xmc data"])
def test_help_of_commands_without_flags(capfd: pytest.CaptureFixture[str], command: str) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"usage: gossamer {command}" in capfd.readouterr().out


VALUES = {"a whole number": "7", "a number": "0.5", "a path": "some/where", "a text": "text"}


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", [Train, Generate, Bench])
def test_what_is_right_is_not_called_wrong(kind: type, data: st.DataObject) -> None:
    """Any line that tyro accepts, and the same line with a letter more in a flag."""
    known = [flag for flag in flags(kind) if flag.spellings]
    chosen = data.draw(st.lists(st.sampled_from(known), unique_by=lambda flag: flag.name, max_size=5))
    line = [{"Train": "", "Generate": "a-model", "Bench": "matmul"}[kind.__name__]][: kind is not Train]
    for flag in chosen:
        name = data.draw(st.sampled_from(flag.spellings))
        value = VALUES.get(flag.expected.split(", each ")[-1]) or flag.expected.removeprefix("one of ").split(", ")[0]
        line += [name] if flag.switch else data.draw(st.sampled_from(([name, value], [f"{name}={value}"])))
    tyro.cli(kind, args=line, console_outputs=False)
    assert mistake(kind, line) is None
    for at, word in enumerate(line):
        if word.startswith("--") and len(word) > 5:
            name, equals, value = word.partition("=")
            wrong = [*line[:at], name[:-1] + "x" + name[-1] + equals + value, *line[at + 1 :]]
            assert f"did you mean {name}?" in (mistake(kind, wrong) or "")


def test_resume_needs_the_folder_only(
    train: Callable[..., int], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every setting comes from the folder; one that is given and differs is refused as ever."""
    from .test_resume import _end

    assert train("--out", "whole", "--method", "rigl", "--no-dense", "--threads", "1") == 0
    monkeypatch.setenv("STOP_AT", "5")
    assert train("--out", "parts", "--method", "rigl", "--no-dense", "--threads", "1") == 128 + signal.SIGINT
    monkeypatch.delenv("STOP_AT")
    capfd.readouterr()
    assert main(["train", "--resume", "parts", "--seed", "3"]) == 2
    assert "seed 0 (now 3)" in _one_line(capfd.readouterr().err)
    assert main(["train", "--resume=parts", "--threads", "1"]) == 0
    same(_end("parts", "sparse"), _end("whole", "sparse"))
    assert not Path("parts/dense").exists()


def test_labels_with_gaps_are_named(train: Callable[..., int], place: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = np.random.default_rng(0).normal(size=(80, 6))
    np.savez(place / "data.npz", x=x, y=1 + 2 * (np.arange(80) % 2), x_test=x[:4], y_test=[1, 3, 2, 2])
    assert train("--out", "run", "--method", "set") == 0
    said = "2 of 4 classes have no training example: 0, 2; 2 test examples are of such a class and cannot be told"
    assert f"npz: data.npz: {said}" in caplog.text
    assert said in (place / "run" / "report.html").read_text()


def test_accuracy_of_guessing_is_flagged(train: Callable[..., int], place: Path) -> None:
    """Three quarters of the labels are one class, and nothing is learned."""
    y = np.where(np.arange(80) % 4, 1, 0)
    np.savez(place / "data.npz", x=np.random.default_rng(0).normal(size=(80, 6)), y=y)
    assert train("--out", "run", "--method", "set", "--lr", "1e-9") == 0
    report = json.loads((place / "run" / "report.json").read_text())
    assert report["chance"] == 0.75
    told = "Dense accuracy is no better than naming the most frequent class every time (75.0 %)"
    assert any(note.startswith(told) for note in report["notes"])
    assert "; no better than guessing (75.0 %)" in report["facts"][0]["label"]
    assert 'class="level"' in (place / "run" / "report.html").read_text()


FACTORIES = {
    "passed on": "def net(width=24, **kwargs):\n    return Net(width=width, **kwargs)",
    "torchvision's name": "def net(**kwargs):\n    return Net(**kwargs)",
    "by name": "def net(num_classes):\n    return Net(num_classes)",
    "read from them": "def net(**given):\n    return Net(given['classes'])",
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_that_take_anything(train: Callable[..., int], place: Path, name: str) -> None:
    (place / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes=1000, width=24):\n"
        "        super().__init__(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, num_classes))\n" + FACTORIES[name]
    )
    assert train("--out", "run", "--method", "set", "--epochs", "1", "--no-dense") == 0

"""What a user can get wrong: one line each, exit status 2, and not a file changed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer import extras
from gossamer.cli.__main__ import main
from gossamer.cli.train import checkpoint

from .conftest import TINY


def _files(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and "__pycache__" not in str(p)}


def _one_line(said: str) -> str:
    lines = said.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gossamer: error: "), said
    return lines[0]


def _untraceable(place: Path) -> None:
    (place / "odd.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, input_shape, classes):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(input_shape[0], 8), torch.nn.Linear(8, classes)\n"
        "    def forward(self, x):\n"
        "        h = self.a(x)\n"
        "        return self.b(h if float(h.sum()) > 0 else h.relu())\n"
    )


def _damaged_npz(place: Path) -> None:
    (place / "bad.npz").write_bytes((place / "data.npz").read_bytes()[:200])


def _empty_images(place: Path) -> None:
    (place / "images").mkdir()


def _damaged_png(place: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (place / "images" / name).mkdir(parents=True)
        image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(place / "images" / name / "1.png")
    (place / "images" / "b" / "1.png").write_bytes(b"\x89PNG nothing more")


def _other_files(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "thesis.tex").write_text("precious")


def _file(place: Path) -> None:
    (place / "run").write_text("precious")


def _nothing(place: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "flags", "said"),
    [
        (_nothing, ["--density", "0"], "density"),
        (_nothing, ["--density", "1.5"], "1.5"),
        (_nothing, ["--density", "nan"], "nan"),
        (_nothing, ["--density", "half"], "half"),
        (_nothing, ["--channel-sparsity", "1.0"], "--channel-sparsity is 1.0"),
        (_nothing, ["--channel-sparsity", "0.99"], "channel"),
        (_nothing, ["--method", "rigl", "--channel-sparsity", "0.4"], "rigl removes no chosen channels"),
        (_nothing, ["--method", "rigl", "--scope", "all"], "rigl removes no chosen channels"),
        (_nothing, ["--scope", "outer"], "outer"),
        (_nothing, ["--method", "chaos"], "'chaos'; expected one of"),
        (_nothing, ["--model", "resnet51"], "'resnet51'; expected one of mlp"),
        (_nothing, ["--model", "convnet"], "convnet expects (channels, height, width)"),
        (_nothing, ["--model", "net.py:nett"], "has no 'nett'"),
        (_untraceable, ["--model", "odd.py:Odd"], "cannot be captured as one graph"),
        (_nothing, ["--data", "cifar"], "'cifar'; expected digits"),
        (_nothing, ["--data", "npz:none.npz"], "no file none.npz"),
        (_damaged_npz, ["--data", "npz:bad.npz"], "bad.npz is not a readable .npz"),
        (_empty_images, ["--data", "imagefolder:images"], "no class folders"),
        (_damaged_png, ["--data", "imagefolder:images"], "b/1.png is not a readable image"),
        (_other_files, [], "holds files but no run.json"),
        (_other_files, ["--overwrite"], "holds files but no run.json"),
        (_other_files, ["--resume"], "holds files but no run.json"),
        (_file, [], "is a file"),
        (_nothing, ["--resume", "--overwrite"], "--resume"),
        (_nothing, ["--optimizer", "adam2"], "'adam2'; expected sgd or adamw"),
        (_nothing, ["--epochs", "0"], "--epochs is 0"),
        (_nothing, ["--epochs", "many"], "many"),
        (_nothing, ["--batch-size", "65"], "only 64 training examples"),
        (_nothing, ["--lr", "-1"], "--lr is -1.0"),
        (_nothing, ["--device", "tpu"], "'tpu'; expected cpu, cuda"),
        (_nothing, ["--device", "cuda:99"], "torch sees"),
        (_nothing, ["--densty", "0.1"], "there is no flag '--densty'; did you mean --density?"),
        (_nothing, ["--seed", str(2**63)], "--seed is 9223372036854775808; expected a whole number from"),
        (_nothing, ["--out", "run\udcff"], r"--out is 'run\udcff'; expected a name in UTF-8"),
        (_nothing, ["--data", "npz:\udcff.npz"], r"--data is 'npz:\udcff.npz'; expected a name in UTF-8"),
    ],
)  # fmt: skip
def test_one_line_and_nothing_written(
    train: Callable[..., int], place: Path, capfd: pytest.CaptureFixture[str], prepare, flags: list[str], said: str
) -> None:
    prepare(place)
    before = _files(place)
    assert train("--out", "run", *flags) == 2
    assert said in _one_line(capfd.readouterr().err)
    assert _files(place) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--resume continues it, --overwrite deletes it"),
        (["--resume", "--method", "rigl"], "method 'set' (now 'rigl')"),
        (["--resume", "--model", "mlp"], "model 'net.py:net' (now 'mlp')"),
        (["--resume", "--density", "0.25", "--seed", "3"], "density 0.2 (now 0.25), seed 0 (now 3)"),
    ],
)
def test_a_run_is_not_written_over(
    train: Callable[..., int], place: Path, capfd: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert train("--out", "run", "--method", "set") == 0
    before = _files(place)
    capfd.readouterr()
    assert train("--out", "run", "--method", "set", *flags) == 2
    assert said in _one_line(capfd.readouterr().err)
    assert _files(place) == before


def test_overwrite_replaces_the_run_and_nothing_else(train: Callable[..., int], place: Path) -> None:
    assert train("--out", "run", "--method", "set") == 0
    (place / "run" / "notes.txt").write_text("mine")
    (place / "run" / "sparse" / "checkpoint.pt").write_bytes(b"damaged")
    assert train("--out", "run", "--method", "rigl", "--no-dense", "--overwrite") == 0
    assert (place / "run" / "notes.txt").read_text() == "mine"
    assert not (place / "run" / "dense").exists()


def _of_another_method(run: Path, train: Callable[..., int]) -> None:
    assert train("--out", "other", "--method", "rigl") == 0
    shutil.copy("other/sparse/checkpoint.pt", run / "sparse" / "checkpoint.pt")


def _of_another_model(run: Path, train: Callable[..., int]) -> None:
    assert train("--out", "other", "--method", "set", "--model", "mlp") == 0
    shutil.copy("other/dense/checkpoint.pt", run / "dense" / "checkpoint.pt")


def _cut(run: Path, train: Callable[..., int]) -> None:
    path = run / "sparse" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(run: Path, train: Callable[..., int]) -> None:
    (run / "dense" / "checkpoint.pt").write_text("hello")


def _other_network(run: Path, train: Callable[..., int]) -> None:
    content = torch.load(run / "dense" / "checkpoint.pt", weights_only=True)
    content["model"]["0.weight"] = torch.zeros(3, 3)
    checkpoint.save(run / "dense" / "checkpoint.pt", content)


def _saved_by_others(run: Path, train: Callable[..., int]) -> None:
    path = run / "dense" / "checkpoint.pt"
    torch.save(torch.load(path, weights_only=True), path)


def _of_the_other_stage(run: Path, train: Callable[..., int]) -> None:
    shutil.copy(run / "sparse" / "checkpoint.pt", run / "dense" / "checkpoint.pt")


def _some_tensors(run: Path, train: Callable[..., int]) -> None:
    torch.save({"weight": torch.zeros(3)}, run / "dense" / "checkpoint.pt")


def _program(run: Path, train: Callable[..., int]) -> None:
    torch.save({"format": 1, "run": subprocess.run}, run / "dense" / "checkpoint.pt")


def _run_json(run: Path, train: Callable[..., int]) -> None:
    (run / "run.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_of_another_method, "method 'rigl' (now 'set')"),
        (_of_another_model, "model 'mlp' (now 'net.py:net')"),
        (_cut, "sparse/checkpoint.pt cannot be read"),
        (_text, "dense/checkpoint.pt cannot be read"),
        (_some_tensors, "is not of this program"),
        (_program, "dense/checkpoint.pt cannot be read"),
        (_other_network, "dense/checkpoint.pt does not fit the network"),
        (_run_json, "run.json cannot be read"),
        (_saved_by_others, "it has no checksum"),
        (_of_the_other_stage, "stage is 'sparse'; expected 'dense'"),
    ],
)
def test_a_wrong_checkpoint_is_refused(
    train: Callable[..., int], place: Path, capfd: pytest.CaptureFixture[str], damage, said: str
) -> None:
    assert train("--out", "run", "--method", "set") == 0
    damage(place / "run", train)
    before = _files(place)
    capfd.readouterr()
    assert train("--out", "run", "--method", "set", "--resume") == 2
    assert said in _one_line(capfd.readouterr().err)
    assert _files(place) == before


@pytest.mark.parametrize(("step", "kept"), [(2, None), (7, 4), (18, 4)])
def test_gradients_that_are_not_finite(
    train: Callable[..., int], place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    step: int, kept: int | None,
) -> None:  # fmt: skip
    monkeypatch.setenv("NAN_AT", str(step))
    assert train("--out", "run") == 2
    said = _one_line(capfd.readouterr().err)
    stage, own = ("dense", step) if step <= 12 else ("sparse", step - 12)
    assert f"epoch {(own - 1) // 4 + 1}, step {own} of the {stage} network" in said
    path = place / "run" / stage / "checkpoint.pt"
    if kept is None:
        assert "no checkpoint was written yet" in said and not path.exists()
    else:
        content = torch.load(path, weights_only=True)
        assert "is kept" in said and content["step"] == kept
        assert all(torch.isfinite(t).all() for t in content["model"].values())


def test_a_network_that_cannot_be_traced_is_trained_but_not_compacted(
    train: Callable[..., int], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _untraceable(place)
    assert train("--out", "run", "--method", "set", "--model", "odd.py:Odd") == 0
    assert "Nothing was removed in the end, compact is the sparse network itself: Odd cannot be captured" in " ".join(
        capfd.readouterr().out.split()
    )
    assert not (place / "run" / "compact").exists()


def test_debug_shows_the_traceback(train: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert train("--density", "2", "--debug") == 2
    said = capfd.readouterr().err
    assert "Traceback" in said and "gossamer: error: " in said.splitlines()[-1]


@pytest.mark.parametrize("argv", [["trian"], ["doctor", "--fast"]])
def test_unknown_commands(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert argv[-1] in _one_line(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("module", "package", "flags"),
    [
        ("tyro", "tyro", []),
        ("torch.utils.tensorboard", "tensorboard", ["--events"]),
        ("safetensors", "safetensors", []),
        ("sklearn.datasets", "scikit-learn", ["--data", "digits"]),
    ],
)
def test_a_missing_extra_is_named(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, package: str,
    flags: list[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    known = extras.version
    monkeypatch.setattr(extras, "version", lambda name: None if name == package else known(name))
    assert main(["train", *TINY, "--out", "run", *flags]) == 2
    assert re.search(rf'pip install "{package}>=[\d.]+" \(gossamer\[run\]\)$', _one_line(capfd.readouterr().err))
    assert not (place / "run").exists(), "before the first step"

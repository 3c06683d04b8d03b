"""A factory's module is found in the current folder, and that folder is searched for nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer as gs

NET = "import torch\nfrom {sibling} import width\ndef net(classes):\n    return torch.nn.Linear(width, classes)\n"
LATE = "import torch\ndef net(classes):\n    from {sibling} import width\n    return torch.nn.Linear(width, classes)\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that no search begins in, as under the console script; modules of a test go with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize("source", [NET, LATE], ids=["at the top", "inside the factory"])
@pytest.mark.parametrize("model", ["ours_net:net", "ours_net.py:net", "sub/ours_net.py:net", "ours_pkg.ours_net:net"])
def test_with_its_neighbours_and_without_a_trace(place: Path, model: str, source: str) -> None:
    path = place / (model.partition(":")[0].removesuffix(".py").replace(".", "/") + ".py")
    path.parent.mkdir(exist_ok=True)
    package = model.startswith("ours_pkg")
    path.write_text(source.format(sibling=".ours_sibling" if package else "ours_sibling"))
    (path.parent / "ours_sibling.py").write_text("width = 5\n")
    (place / "ours_pkg").mkdir(exist_ok=True)
    (place / "ours_pkg" / "__init__.py").touch()
    (place / "ours_other.py").write_text("raise SystemExit('run unasked')")
    before = list(sys.path)
    assert gs.models.build(model, input_shape=(5,), classes=2).in_features == 5
    assert sys.path == before
    assert importlib.util.find_spec("ours_other") is None


@pytest.mark.parametrize("name", ["wave", "torch"])
def test_a_name_that_is_installed_too_is_refused(place: Path, name: str) -> None:
    """One that is not yet imported, and one that is."""
    (place / f"{name}.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(1, 1)\n")
    with pytest.raises(
        ValueError, match=rf"another module of that name is .*; rename the file, or write {name}\.py:fac"
    ):
        gs.models.build(f"{name}:net", input_shape=(1,), classes=1)
    assert gs.models.build(f"{name}.py:net", input_shape=(1,), classes=1).in_features == 1


def test_a_module_of_another_folder_is_not_taken_for_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, width in (("one", 1), ("two", 2)):
        (place / folder).mkdir()
        (place / folder / "ours_twice.py").write_text(
            f"import torch\ndef net():\n    return torch.nn.Linear({width}, 1)\n"
        )
    monkeypatch.chdir(place / "one")
    assert gs.models.build("ours_twice:net", input_shape=(1,), classes=1).in_features == 1
    monkeypatch.chdir(place / "two")
    with pytest.raises(ValueError, match="another module of that name"):
        gs.models.build("ours_twice:net", input_shape=(1,), classes=1)


def test_installed_modules_are_found(place: Path) -> None:
    assert gs.models.build("torch.nn:Identity", input_shape=(1,), classes=1) is not None


def test_files_with_the_names_of_packages_are_not_run(place: Path) -> None:
    """By a whole run of `python -m gossamer`, and by what `python -m gossamer.cli` imports to say what is there."""
    for name in ("torch", "numpy", "sklearn", "tyro", "safetensors", "json", "tensorflow", "tqdm", "PIL"):
        (place / f"{name}.py").write_text(f"raise SystemExit('{name}.py was run')")
    (place / "mine.py").write_text(
        "from torch import nn\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    flags = ["--epochs", "1", "--method", "set", "--no-dense", "--no-events", "--reps", "0"]
    for words in (["gossamer", "train", "--model", "mine:net", *flags], ["gossamer.cli", "doctor"]):
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

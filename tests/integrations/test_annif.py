"""Annif trains and suggests with our classifier, by its own command line and its own configuration.

Annif pins versions that other extras do not go with: where it is not installed, what does not need it is tested.
"""

import subprocess
import sys

import pytest

from gossamer.integrations.annif import classifier_of, register
from gossamer.xmc import load

WORDS = ["red", "green", "blue", "apple", "pear", "wine"]
DOCUMENTS = [(f"{a} {b}", sorted({a, b})) for a in WORDS for b in WORDS] * 3


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration, a vocabulary with one subject too many, and a corpus."""
    pytest.importorskip("annif")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects.cfg").write_text(
        "[ours]\nname=Ours\nlanguage=en\nbackend=gossamer\nvocab=words\nlimit=3\nfan_in=8\nwidth=32\nepochs=30\n"
        "batch_size=16\n[wrong]\nname=Wrong\nlanguage=en\nbackend=gossamer\nvocab=words\nfan_in=many\n"
    )
    subjects = "".join(f"<http://example.org/{word}>\t{word}\n" for word in [*WORDS, "unseen"])
    (tmp_path / "words.tsv").write_text(subjects)
    lines = [
        text + "\t" + " ".join(f"<http://example.org/{subject}>" for subject in found) for text, found in DOCUMENTS
    ]
    (tmp_path / "corpus.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def annif(*words, given=""):
    command = [sys.executable, "-m", "gossamer.integrations.annif", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True)


def test_the_whole_way(place):
    assert annif("load-vocab", "--language", "en", "words", "words.tsv").returncode == 0
    early = annif("suggest", "ours", given="red apple")
    assert early.returncode != 0 and "not trained" in early.stderr
    trained = annif("train", "ours", "corpus.tsv")
    assert trained.returncode == 0, trained.stderr
    said = annif("suggest", "ours", given="green pear")
    assert said.returncode == 0, said.stderr
    found = [line.split("\t") for line in said.stdout.splitlines()]
    assert {word for _, word, _ in found[:2]} == {"green", "pear"} and len(found) == 3
    assert all(0 < float(score) < 1 for _, _, score in found) and float(found[1][2]) > 0.5
    model = load(place / "data" / "projects" / "ours" / "gossamer-model")
    assert list(model.names) == sorted(f"http://example.org/{word}" for word in WORDS)  # the unseen one takes no room
    scored = annif("eval", "ours", "corpus.tsv", "--limit", "2")
    assert scored.returncode == 0, scored.stderr
    line = next(line for line in scored.stdout.splitlines() if line.startswith("F1 score (doc avg)"))
    assert float(line.split(":")[1]) > 0.8


def test_errors_are_those_of_annif(place):
    annif("load-vocab", "--language", "en", "words", "words.tsv")
    wrong = annif("train", "wrong", "corpus.tsv")
    assert wrong.returncode != 0 and "fan_in is 'many'; expected a whole number" in wrong.stderr
    (place / "empty.tsv").write_text("")
    empty = annif("train", "ours", "empty.tsv")
    assert empty.returncode != 0 and "documents that have text and subjects" in empty.stderr
    assert "Traceback" not in wrong.stderr + empty.stderr


def test_parameters_are_words():
    made = classifier_of({"fan_in": "32", "lr": "0.01", "width": "64", "language": "en", "epochs": 3})
    assert (made.recipe.fan_in, made.recipe.lr, made.recipe.epochs) == (32, 0.01, 3)
    assert made.encoder_settings == {"width": 64}
    assert classifier_of({"encoder": "minilm", "max_length": "64", "width": "9"}).encoder_settings == {"max_length": 64}
    for wrong, said in (({"lr": "fast"}, "lr is 'fast'; expected a number"), ({"epochs": "0"}, "at least 1, got 0")):
        with pytest.raises(ValueError, match=said):
            classifier_of(wrong)


def test_without_annif_the_extra_is_named():
    try:
        import annif  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match='pip install "annif>='):
            register()
    else:
        register()

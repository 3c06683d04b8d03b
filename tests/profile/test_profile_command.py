"""`gossamer profile MODEL DATA`: models and data as other commands take them, whole files, one line of errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sparse_models import decoder, encoder

from gossamer.cli.__main__ import main

transformers = pytest.importorskip("transformers")


def letters(place: Path) -> None:
    """A tokenizer whose tokens are letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({chr(code): code - 31 for code in range(32, 127)} | {"<u>": 0}, "<u>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<u>", pad_token="<u>").save_pretrained(place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, an encoder, texts, token ids, vectors."""
    place = tmp_path_factory.mktemp("profile")
    for name, model in (("decoder", decoder()), ("encoder", encoder())):
        model.save_pretrained(place / name)
        letters(place / name)
    (place / "texts.txt").write_text("a long line of forty letters, or about so\n\nshort\nno\n" * 2)
    (place / "empty.txt").write_text("\n \n")
    np.save(place / "ids.npy", np.arange(60) % 96)
    np.save(place / "large.npy", np.arange(200))
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez(place / "vectors.npz", x=x, y=np.arange(40) % 2)
    return place


def run(*arguments: Any) -> int:
    return main(["profile", *map(str, arguments)])


def test_an_encoder_is_padded_as_its_lines_are(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page"
    json_file = tmp_path / "found.json"
    given = ("--kinds", "padding", "--batch", 3, "--json", json_file, "--out", out)
    assert run(place / "encoder", place / "texts.txt", *given) == 0
    said = capsys.readouterr().out
    lengths = [41, 5, 2]
    share = 1 - sum(lengths) / (3 * 41)
    found = json.loads(json_file.read_text())["findings"][0]
    assert found["share"] == pytest.approx(share, abs=1e-6) and f"{share:.1%}" in said
    html = (out / "profile.html").read_text()
    assert "Padding of batches" in html and f"gossamer profile {place / 'encoder'} {place / 'texts.txt'}" in html
    assert json.loads((out / "profile.json").read_text())["findings"][0] == found


def test_a_decoder_reads_pieces_of_a_text_or_of_token_ids(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place / "decoder", place / "texts.txt", "--kinds", "layers", "--length", 20, "--samples", 4) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "over 80 tokens and 3 layers" in text and "4 batches, the largest 1 text of 20 tokens" in text
    assert run(place / "decoder", place / "ids.npy", "--kinds", "layers", "--length", 30, "--batch", 2) == 0
    assert "over 60 tokens" in " ".join(capsys.readouterr().out.split())


def test_networks_read_pictures_and_vectors_by_the_path_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mlp", place / "vectors.npz", "--kinds", "zeros", "width", "--batch", 4, "--samples", 8) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 batches, the largest 4 examples" in said and "weights that it begins with" in said


def test_commands_that_are_advised_run(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a profile says to type is accepted by the commands it names."""
    import shlex

    from sparse_models import ids

    from gossamer.profile.attention import _to_try as attention
    from gossamer.profile.batches import batches_of
    from gossamer.profile.channels import _train
    from gossamer.profile.layers import _to_try as layers
    from gossamer.profile.study import Study

    model, text = decoder(), str(place / "texts.txt")
    study = Study(model, batches_of(model, ids(1, 8)), name=str(place / "decoder"), source=text)
    generate = shlex.split(attention(study, 192))
    assert generate[0] == "gossamer" and main([*generate[1:], "--max-length", "200"]) == 0
    distill = shlex.split(layers(study, 0.2))
    assert "0.8" in distill
    distill[distill.index("router.safetensors")] = str(tmp_path / "router.safetensors")
    assert main([*distill[1:], "--steps", "1", "--length", "16"]) == 0
    train = shlex.split(_train(Study(model, [], name="mlp", source=f"npz:{place / 'vectors.npz'}")))
    assert main([*train[1:], "--epochs", "1", "--batch-size", "8", "--reps", "0", "--out", str(tmp_path / "run")]) == 0


BAD = [
    (["nothing", "digits"], "there is no model 'nothing'"),
    (["convnet", "nothing"], "DATA is 'nothing'; expected digits"),
    (["convnet", "digits", "--length", "3"], "--length is 3, but it is for models of text"),
    (["decoder", "digits"], "reads text; expected a file of text"),
    (["decoder", "nothing.txt"], "expected a file of text in UTF-8"),
    (["decoder", "nothing.npy"], "there is no such file"),
    (["decoder", "empty.txt"], "holds no text"),
    (["decoder", "vectors.npz"], "is no text in UTF-8"),
    (["decoder", "large.npy"], "token ids from 0 to 199; expected 0 to 95"),
    (["decoder", "texts.txt", "--length", "9999"], "--length must be up to"),
    (["encoder", "texts.txt", "--length", "9999"], "--length must be up to"),
    (["encoder", "texts.txt", "--dtype", "bfloat16"], "--dtype is bfloat16"),
    (["encoder", "texts.txt", "--batch", "0"], "--batch must be at least 1, got 0"),
    (["encoder", "texts.txt", "--kinds", "zeroes"], "--kinds has 'zeroes'"),
    (["encoder", "texts.txt", "--error", "2"], "--error must be a share of 1, got 2.0"),
    (["encoder", "texts.txt", "--json", "texts.txt/x.json"], "texts.txt"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_errors_are_one_line(
    place: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1], lines

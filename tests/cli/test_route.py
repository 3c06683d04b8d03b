"""`gossamer route`: help that a newcomer understands, a table, files that are whole, errors in a line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from gossamer.cli.__main__ import main
from gossamer.cli.route.command import COMMANDS
from gossamer.routing import saved

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers whose tokens are letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = Tokenizer(models.WordLevel({chr(code): code - 31 for code in range(32, 127)} | {"<u>": 0}, "<u>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    place = tmp_path_factory.mktemp("model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<u>").save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_help_begins_at_the_beginning(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["route"]) == 0 and main(["route", "--help"]) == 0
    said = capfd.readouterr().out
    for name, about in COMMANDS.items():
        assert f"  {name}" in said and about in said
    for name in COMMANDS:
        with pytest.raises(SystemExit) as leaving:
            main(["route", name, "--help"])
        assert leaving.value.code == 0
        assert "Show the traceback of an error." in capfd.readouterr().out


def test_profile(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    (tmp_path / "b.txt").write_text("klm" * 30)
    texts = ["--text", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    out = ["--json", str(tmp_path / "out/p.json"), "--html", str(tmp_path / "out/p.html")]
    assert main(["route", "profile", str(model), *texts, "--tokens", "150", "--length", "40", *out]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{model} (LlamaForCausalLM), 3 layers, 150 tokens")
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert lines[-1] == f"written: {tmp_path / 'out/p.json'}, {tmp_path / 'out/p.html'}"
    found = json.loads((tmp_path / "out/p.json").read_text())
    assert (found["tokens"], found["layers"]) == (150, 3)
    page = (tmp_path / "out/p.html").read_text()
    assert "a.txt, b.txt, 40 tokens at a time. Weights: float32." in page
    # Pieces of a text are texts of their own, so the same letters in one file more give the same numbers.
    (tmp_path / "c.txt").write_text("klm" * 30)
    (tmp_path / "d.txt").write_text("abcdefghij" * 4)
    (tmp_path / "e.txt").write_text("abcdefghij" * 6)
    texts = ["--text", *(str(tmp_path / f"{name}.txt") for name in "dec")]
    assert main(["route", "profile", str(model), *texts, "--tokens", "150", "--length", "40", *out]) == 0
    again = json.loads((tmp_path / "out/p.json").read_text())
    assert again["influence"] == pytest.approx(found["influence"], rel=1e-6)


def test_several_models_are_laid_over_each_other(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tokens", "70", "--length", "64", "--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html")]
    assert main(["route", "profile", str(model), str(model), *flags]) == 0
    said = capfd.readouterr().out
    assert said.count("least influence first") == 2 and said.count(f"  {model} (LlamaForCausalLM)") == 2
    first, second = json.loads((tmp_path / "p.json").read_text())["profiles"]
    assert first == second and first["tokens"] == 70
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 5 and page.count('class="curve compact"') == page.count('class="curve sparse"') == 5
    assert main(["route", "profile", *[str(model)] * 7]) == 2
    assert "MODEL must be given 1 to 6 times, got 7" in capfd.readouterr().err


def test_python_is_the_text_that_everybody_has(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "profile", str(model), "--tokens", "70", "--length", "64"]) == 0
    assert "70 tokens" in capfd.readouterr().out


def test_mistakes(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    words = tmp_path / "no words"
    transformers.LlamaForCausalLM.from_pretrained(model).save_pretrained(words)
    for arguments, said in (
        (["profil"], "there is no command route 'profil'; expected profile, distill, train or eval; did"),
        (["profile"], "MODEL"),
        (["profile", "no/such"], "there is no model 'no/such'"),
        (["profile", str(model), "--text", str(tmp_path / "none.txt")], "none.txt"),
        (["profile", str(model), "--text", str(tmp_path / "empty.txt"), "--length", "9"], "--text holds no text"),
        (["profile", str(model), "--text", str(tmp_path / "bytes.txt")], "bytes.txt is not a text in UTF-8"),
        (["profile", str(model), "--length", "65"], "--length must be up to 64"),
        (["profile", str(model), "--length", "0"], "--length must be at least 1, got 0"),
        (["profile", str(model), "--tokens", "-1"], "--tokens must be at least 1, got -1"),
        (["profile", str(model), "--json", str(tmp_path)], "is a folder"),
        (["profile", str(words)], "has no tokenizer, which texts need"),
    ):
        assert main(["route", *arguments]) == 2, arguments
        shown = capfd.readouterr().err.splitlines()[-1]
        assert shown.startswith("gossamer: error: ") and said in shown


def test_tyro_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["route", "profile", "smollm2"]) == 2
    assert 'gossamer route needs tyro: pip install "' in capfd.readouterr().err
    assert main(["route", "--help"]) == 0


def test_a_router_is_taught_looked_at_and_used(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran to the cat " * 8)
    text, router = ["--text", str(tmp_path / "a.txt")], tmp_path / "r.safetensors"
    taught = [
        "route",
        "distill",
        str(model),
        *text,
        "--budget",
        "0.6",
        "--steps",
        "12",
        "--length",
        "32",
        "--lr",
        "0.05",
    ]
    assert main([*taught, "--adapter", "2", "--out", str(router), "--json", str(tmp_path / "h.json")]) == 0
    said = capfd.readouterr().out
    assert f"written: {router}; use it with: gossamer generate" in said and "the budget was 60.0%" in said
    assert len(json.loads((tmp_path / "h.json").read_text())["steps"]) == 12
    assert not router.with_name(router.name + ".run").exists()
    before = router.read_bytes()
    assert main([*taught, "--out", str(router)]) == 2  # minutes of training are not replaced unasked
    assert f"--out {router} is there already; --overwrite" in capfd.readouterr().err
    assert main([*taught, "--out", str(tmp_path / "s.safetensors"), "--json", str(tmp_path / "h.json")]) == 2
    assert "--json" in capfd.readouterr().err and router.read_bytes() == before
    assert main([*taught, "--adapter", "1", "--out", str(router), "--overwrite"]) == 0
    assert router.read_bytes() != before
    capfd.readouterr()
    looked = ["route", "eval", str(model), *text, "--tokens", "120", "--length", "40", "--router", str(router)]
    assert main([*looked, "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["all layers"]["cost"] == 1 and found["routed"]["cost"] < 0.9
    assert "3.0 of 3" in capfd.readouterr().out
    asked = ["generate", str(model), "--raw", "--prompt", "the cat", "--max-tokens", "5"]
    assert main(asked) == 0
    whole = capfd.readouterr().out
    assert main([*asked, "--router", str(router)]) == 0
    assert len(capfd.readouterr().out) == len(whole) == 10
    other = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    assert main(["generate", str(tmp_path / "other"), "--prompt", "a", "--router", str(router)]) == 2
    assert "r.safetensors" in capfd.readouterr().err
    assert main([*looked[:-1], str(tmp_path / "a.txt")]) == 2
    assert "a.txt" in capfd.readouterr().err


def test_a_model_from_scratch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for at in range(12):
        (sources / f"{at}.py").write_text(f"def f{at}(x):\n    return x + {at}\n" * 20)
    sizes = ["--width", "32", "--layers", "2", "--hops", "4", "--heads", "2", "--vocabulary", "300"]
    made = ["route", "train", "--out", str(tmp_path / "lm"), "--folder", str(sources), *sizes]
    assert main([*made, "--steps", "4", "--length", "16", "--batch", "2"]) == 0
    assert "try: gossamer route eval" in capfd.readouterr().out
    assert main(["route", "eval", str(tmp_path / "lm"), "--text", str(sources / "1.py"), "--length", "16"]) == 0
    assert " of 8" in capfd.readouterr().out  # two layers at four hops
    assert main([*made, "--steps", "4"]) == 2
    assert "config.json is there already; --overwrite" in capfd.readouterr().err
    assert main([*made, "--budget", "1.5", "--overwrite"]) == 2
    assert "budget must be" in capfd.readouterr().err
    assert main([*made, "--steps", "2", "--length", "16", "--batch", "2", "--overwrite"]) == 0


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_what_others_wrote_is_not_replaced(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], overwrite: tuple[str, ...]
) -> None:
    """A model that this command did not train, though a router lies in it; a file that is no router, or no numbers."""
    theirs = shutil.copytree(model, tmp_path / "theirs")
    weights, note = theirs / "model.safetensors", tmp_path / "note.json"
    shutil.copy(saved.SHIPPED["smollm2"], theirs / "router.safetensors")
    note.write_text('{"a": 1}')
    before = {each: each.read_bytes() for each in [*theirs.iterdir(), note]}
    taught = ["route", "distill", str(model), "--steps", "1"]
    for words, said in (
        (["route", "train", "--out", str(theirs), "--steps", "1"], f"{theirs} holds files but no run.json"),
        ([*taught, "--out", str(weights)], "model.safetensors is there already and is not a router"),
        ([*taught, "--out", str(tmp_path / "r"), "--json", str(note)], "note.json is there already and is not the num"),
    ):
        assert main([*words, *overwrite]) == 2
        shown = capfd.readouterr().err
        assert said in shown and "--overwrite" not in shown
    assert {each: each.read_bytes() for each in [*theirs.iterdir(), note]} == before


def test_a_run_does_not_go_on_with_other_texts(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the two that learn; with the texts of then they do, also where the checkpoint does not know them."""
    sources, lm = tmp_path / "sources", tmp_path / "lm"
    sources.mkdir()
    for at in range(12):
        (sources / f"{at}.py").write_text(f"def f{at}(x):\n    return x + {at}\n" * 20)
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 9)
    made = ["route", "train", "--out", str(lm), "--folder", str(sources), "--width", "32", "--layers", "1", "--heads",
            "2", "--vocabulary", "300", "--steps", "2", "--length", "16", "--batch", "2"]  # fmt: skip
    router = tmp_path / "r.safetensors"
    taught = ["route", "distill", str(model), "--text", str(tmp_path / "a.txt"), "--steps", "2", "--length", "32",
              "--out", str(router)]  # fmt: skip
    for words, file, flag, checkpoint in (
        (made, sources / "3.py", "--folder", lm / "training.run"),
        (taught, tmp_path / "a.txt", "--text", tmp_path / "r.safetensors.run"),
    ):
        with monkeypatch.context() as full:
            full.setattr("gossamer.routing.saved.save_state", _full)
            assert main(words) == 2  # all is learned, and the checkpoint is there
        whole, kept = file.read_text(), checkpoint.read_bytes()
        file.write_text(whole.replace("n", "m", 1).replace("cat", "dog", 1))
        capfd.readouterr()
        assert main([*words, "--overwrite"]) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert f"{checkpoint} is of a run on other texts" in said and flag in said and "another --out" in said
        file.write_text(whole)
        record, tensors = saved.read(checkpoint, "run")
        assert record.pop("data") is not None and checkpoint.read_bytes() == kept
        saved.write(checkpoint, "run", record, tensors)
        assert main([*words, "--overwrite"]) == 0 and not checkpoint.exists()


def _full(*_: object) -> None:
    raise OSError(28, "no space left")

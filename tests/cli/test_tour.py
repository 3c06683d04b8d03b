"""The tour: every card is a real run; one that fails says why and takes no other with it; nothing of others is lost."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.cli.__main__ import main
from gossamer.cli.tour import command, one
from gossamer.cli.tour.card import ORDER, Card, Outcome, card
from gossamer.report.quantity import times

TIMES = {"median": 1.0, "q1": 0.9, "q3": 1.1, "min": 0.8, "first": 2.0, "ratio_q1": 0.9, "ratio_q3": 1.1, "reps": 5}


def comparison(ratio: float, verdict: str) -> dict:
    rows = [
        {"name": "dense", "ratio": 1.0, "verdict": "inconclusive", **TIMES},
        {"name": "ours", "ratio": ratio, "verdict": verdict, **TIMES},
    ]
    return {"baseline": "dense", "rows": rows, "control": {"name": "dense (control)", "ratio": 0.97, **TIMES}}


def found(ratio: float, verdict: str) -> dict:
    timed = {"what": "a step", "ours": "ours", "comparison": comparison(ratio, verdict)}
    return {
        "gain": timed,
        "loses": timed,
        "facts": [["98 %", "of <something>"]],
        "links": [["a report", "report.html"]],
    }


def toured(folder: Path, cards: dict[str, dict]) -> str:
    """The page of these results."""
    for name, result in cards.items():
        (folder / name).mkdir()
        (folder / name / command.FOUND).write_text(json.dumps(result))
    record = {name: {"seconds": 3.0, "environment": gs.measure.environment(), "quick": False} for name in cards}
    command.write(folder, record)
    return (folder / command.PAGE).read_text()


def test_every_card_is_there_and_its_docs_page_too() -> None:
    root = Path(__file__).parents[2]
    for name in ORDER:
        assert isinstance(card(name), Card)
        assert (root / card(name).page).is_file(), name


def _texts() -> dict:
    sets = [[0, 2], [1], [0]] * 8
    return {"texts": ["a red apple", "a green pear", "red wine"] * 8, "label_sets": sets, "count": 3}


def _decoder() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()


def _mine(name: str) -> dict:
    """What the lines of a card call their reader's own."""
    torch.manual_seed(0)
    if name == "spartex":
        return _texts()
    if name == "radial":
        return {"model": _decoder(), "batches": [torch.randint(64, (2, 16))] * 3, "input_ids": torch.ones(1, 4).long()}
    if name == "lserve":
        return {"text": "def f(): pass\n", "questions": ["What?"]}
    if name == "pit":
        ids = torch.randint(1, 30, (2, 8))
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        return {
            "model": BertModel(config).eval(),
            "ids": ids,
            "mask": (torch.arange(8) < torch.tensor([[8], [3]])).long(),
        }
    if name == "sparsetrain":
        return {"model": nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())}
    model = nn.Sequential()
    model.fc = nn.Linear(32, 64)
    model.act, model.out = nn.ReLU(), nn.Linear(64, 4)
    return {
        "model": model, "x": torch.randn(8, 32), "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "steps": 20,
        "in_features": 32, "out_features": 64,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ORDER if name != "lserve"])
def test_the_lines_of_a_card_run_as_they_stand(name: str, monkeypatch) -> None:
    """But that what is compiled runs as the graph that it is: inductor's code for it has tests of its own."""
    monkeypatch.setattr("gossamer.compile.backend.inductor", lambda gm, inputs, config=None: gm)
    lines = card(name).lines.replace("steps=500", "steps=2").replace("max_new_tokens=64", "max_new_tokens=2")
    scope = {"gs": gs, "torch": torch, **_mine(name)}
    exec(lines, scope)
    if name == "spartex":
        assert scope["ids"].shape == (1, 5)
    if name == "popsparse":
        assert isinstance(scope["model"].fc, gs.nn.BlockSparseLinear)


def test_the_page_shows_gains_losses_and_noise(tmp_path: Path) -> None:
    page = toured(tmp_path, {"chase": found(2.5, "faster"), "pit": found(1.01, "inconclusive")})
    assert times(2.5) in page and "as fast as dense" in page
    assert "no faster or slower" in page
    assert "of &lt;something&gt;" in page and 'href="chase/report.html"' in page
    assert f"quartiles {times(0.9)} to {times(1.1)}; dense against itself {times(0.97)}" in page


def test_a_card_that_failed_says_why_and_the_others_stand(tmp_path: Path) -> None:
    page = toured(tmp_path, {"chase": found(2.5, "faster"), "lserve": {"error": "smollm2 is not on this machine"}})
    assert "This card failed: smollm2 is not on this machine" in page
    assert times(2.5) in page


def test_the_other_case_is_not_called_a_loss_where_it_gains(tmp_path: Path) -> None:
    slower, faster = found(0.8, "slower"), found(1.4, "faster")
    slower["gain"] = faster["gain"]
    page = toured(tmp_path, {"chase": slower, "pit": faster})
    assert page.count("Where it does not<") == page.count("Where it pays least<") == 1


def test_what_was_found_comes_back_from_its_file() -> None:
    result = found(1.5, "faster")
    assert json.loads(json.dumps(Outcome.of(result).to_dict())) == result


def test_a_process_that_dies_is_a_failed_card(tmp_path: Path) -> None:
    shown = command.read(tmp_path, "pit", 2.0, status=-9)
    assert shown.error is not None and "signal 9" in shown.error and "log.txt" in shown.error


def test_a_tour_that_was_killed_can_be_run_again(tmp_path: Path, monkeypatch) -> None:
    def killed(*_: object) -> None:
        (tmp_path / "tour" / "pit").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        command.run(["pit", "--out", str(tmp_path / "tour")])
    assert command.RECORD.find(tmp_path / "tour", "--out ") == {**command.RECORD.read(tmp_path / "tour"), "cards": {}}


@contextlib.contextmanager
def inside(words: list[str], *, stderr: IO[str], **_: object) -> Iterator[SimpleNamespace]:
    """What runs a card in a process of its own does it here."""
    assert words[:3] == [sys.executable, "-m", one.__name__]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(stderr):
        code = one.main(words[3], Path(words[4]), "--quick" in words[5:])
    yield SimpleNamespace(stdout=io.StringIO(said.getvalue()), returncode=code)


def test_a_missing_model_fails_its_card_alone(tmp_path: Path, monkeypatch, capfd) -> None:
    """Real runs of two cards, one in this process, which has no model: the other is on the page."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "tour"
    with monkeypatch.context() as patch:
        patch.setattr(command, "_process", inside)
        assert main(["tour", "lserve", "--out", str(out)]) == 2
    said = capfd.readouterr()
    assert "card lserve failed: smollm2 is not on this machine" in said.err and "gossamer model smollm2" in said.err
    assert main(["tour", "popsparse", "--quick", "--out", str(out)]) == 0
    page = (out / command.PAGE).read_text()
    assert "This card failed: smollm2" in page and "training step of three layers" in page
    assert (out / "popsparse" / command.LOG).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lserv"], "spartex, lserve, radial; did you mean lserve?"),
        (["--out", "taken"], "holds files but no tour.json"),
        (["--out", "file"], "is a file; expected a folder"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_bad_lines_are_refused_before_a_card_runs(tmp_path: Path, monkeypatch, capfd, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["tour", *arguments]) == 2
    assert said in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_cards_run(tmp_path: Path) -> None:
    out = tmp_path / "tour"
    done = subprocess.run(
        [sys.executable, "-m", "gossamer", "tour", "--quick", "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "7 of 7 cards" in done.stdout
    page = (out / command.PAGE).read_text()
    for name in ORDER:
        assert f'id="{name}"' in page
    assert (out / "chase" / "report" / "report.html").is_file()

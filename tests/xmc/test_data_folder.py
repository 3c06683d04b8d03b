"""Folders of data sets: what is recognised, what does not go together, the cache, and whose files may be deleted."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

from gossamer import files
from gossamer.xmc.data import Csr, DataSet, Part, Texts, load, save
from gossamer.xmc.data import cache as cache_module


def _write(place: Path, **content: str) -> Path:
    for name, text in content.items():
        path = place / name.replace("__", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return place


GOOD = {
    "trn_X_Y__txt": "2 4\n0:1\n3:1\n", "tst_X_Y__txt": "1 4\n2:1\n",
    "trn_X__txt": "one\ntwo\n", "tst_X__txt": "three\n",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"trn_X__txt": None, "tst_X__txt": None}, ValueError, "holds neither features nor texts; expected one of"),
        ({"trn_X_Y__txt": None, "tst_X_Y__txt": None}, ValueError, "holds no label sets in a known layout"),
        ({"tst_X_Y__txt": None}, FileNotFoundError, "there is no file .*tst_X_Y.txt, beside .*trn_X_Y.txt"),
        ({"tst_X__txt": None}, FileNotFoundError, "there is no file .*tst_X.txt"),
        ({"trn_X__txt": "one\n"}, ValueError, "d: there are 1 texts and 2 rows of labels"),
        ({"tst_X_Y__txt": "1 5\n2:1\n"}, ValueError, "d: the training part has 4 labels, the test part 5"),
        ({"Y__txt": "a\nb\n"}, ValueError, "d: there are 2 label texts and 4 labels"),
        ({"filter_labels_test__txt": "1 0\n"}, ValueError, r"filter_labels_test\.txt:1: it has the id '1'"),
        ({"trn_X_Xf__txt": "2 3\n\n\n", "tst_X_Xf__txt": "1 4\n\n"}, ValueError, "has 3 features, the test part 4"),
        ({"trn_X_Xf__txt": "1 3\n\n", "tst_X_Xf__txt": "1 3\n\n"}, ValueError, "features have 1 rows, labels 2"),
    ],
)  # fmt: skip
def test_files_that_do_not_go_together(tmp_path: Path, changed: dict, error: type[Exception], said: str) -> None:
    _write(tmp_path / "d", **{name: text for name, text in (GOOD | changed).items() if text is not None})
    with pytest.raises(error, match=said):
        load(tmp_path / "d")
    assert not (tmp_path / "d" / ".gossamer-xmc.npz").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotADirectoryError, match="is a pipe"):
        load(tmp_path / "pipe")


def test_the_number_of_labels_of_json_is_that_of_both_files(tmp_path: Path) -> None:
    line = '{{"title": "t", "target_ind": [{}]}}\n'
    place = _write(tmp_path, trn__json=line.format("0, 2") + line.format(""), tst__json=line.format(6))
    assert load(place).train.labels.shape == (2, 7) and load(place).test.labels.shape == (1, 7)


class _Parsed(Exception):
    """The source files were read, not the cache."""


def test_the_cache_is_taken_only_while_its_sources_are_the_same(tmp_path: Path, monkeypatch) -> None:
    place = _write(tmp_path / "d", **GOOD)
    first = load(place)
    names = ["trn_X_Y.txt", "trn_X.txt"]

    def taken() -> bool:
        def parsed(*_: object) -> None:
            raise _Parsed

        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("gossamer.xmc.data.load"), "_read", parsed)
            try:
                load(place)
            except _Parsed:
                return False
            return True

    assert taken()
    os.utime(place / names[0], ns=(5, 5))  # another time, the same content
    assert taken()
    (place / names[0]).write_text(GOOD["trn_X_Y__txt"].replace("3:1", "1:1"))  # the same size
    assert not taken()
    load(place)
    now = (place / names[0]).stat().st_mtime_ns
    (place / names[0]).write_text(GOOD["trn_X_Y__txt"].replace("3:1", "2:1"))
    os.utime(place / names[0], ns=(now, now))  # within one tick of the clock: the same size and time
    assert not taken()
    (place / names[0]).write_text(GOOD["trn_X_Y__txt"].replace("3:1", "1:1"))
    assert load(place).train.labels.row(1).tolist() == [1] and first.train.labels.row(1).tolist() == [3]
    assert taken()
    _write(place, trn_X_Xf__txt="2 3\n0:1\n\n", tst_X_Xf__txt="1 3\n\n")  # a piece that was not there
    assert not taken() and load(place).train.features is not None


def test_old_files_are_known_by_their_time_alone(tmp_path: Path, monkeypatch) -> None:
    """Gigabytes are not read at every load."""
    place = _write(tmp_path / "d", **GOOD)
    for name in os.listdir(place):
        os.utime(place / name, (10**9, 10**9))
    load(place)
    monkeypatch.setattr(cache_module, "_checksum", lambda source: pytest.fail("read"))
    load(place)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:300] + b"x" * 9 + b[309:]])
def test_a_damaged_cache_is_said_and_made_anew(tmp_path: Path, caplog, damage) -> None:
    place = _write(tmp_path / "d", **GOOD)
    load(place)
    path = place / ".gossamer-xmc.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert load(place).train.labels.row(1).tolist() == [3]
    assert "is no cache that can be read" in caplog.text
    caplog.clear()
    load(place)
    assert not caplog.text


def test_a_folder_that_takes_no_cache_is_said(tmp_path: Path, caplog, monkeypatch) -> None:
    place = _write(tmp_path / "d", **GOOD)

    def full(path: Path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replacing", full)
    assert load(place).labels == 4
    assert "cannot be written, so the next load parses again" in caplog.text


def _data() -> DataSet:
    y = Csr.from_lists([[0], [1]], columns=2)
    return DataSet(Part(y, None, Texts.of("ab")), Part(y, None, Texts.of("cd")))


def test_only_a_data_set_of_ours_is_deleted(tmp_path: Path) -> None:
    place = tmp_path / "d"
    save(_data(), place, layout="renee")
    load(place)
    (place / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a data set already"):
        save(_data(), place)
    save(_data(), place, overwrite=True)
    assert sorted(p.name for p in place.iterdir()) == [
        "data.json", "notes.md", "trn_X.txt", "trn_X_Y.txt", "tst_X.txt", "tst_X_Y.txt",
    ]  # fmt: skip
    other = _write(tmp_path / "other", trn_X_Y__txt="")
    with pytest.raises(FileExistsError, match=r"holds files but no data\.json"):
        save(_data(), other, overwrite=True)
    (other / "data.json").write_text('{"format": "gossamer.xmc.data", "version": 1, "files": ["trn_X_Y.txt"]}')
    with pytest.raises(ValueError, match="its checksum does not match"):
        save(_data(), other, overwrite=True)
    assert (other / "trn_X_Y.txt").exists()


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("xml", "layout is 'xml'; expected one of standard, old, json"),
        ("old", "layout 'old' holds features and no texts"),
        ("lightxml", "expected sorted label texts"),
    ],
)
def test_a_layout_that_cannot_hold_the_data_changes_nothing(tmp_path: Path, layout: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        save(_data(), tmp_path / "d", layout=layout)
    assert not (tmp_path / "d").exists()


def test_parts_that_do_not_fit() -> None:
    y = Csr.from_lists([[0], [1]], columns=2)
    with pytest.raises(ValueError, match="features have no values"):
        Part(y, y)
    with pytest.raises(ValueError, match="exclude is of shape"):
        Part(y, None, Texts.of("ab"), Csr.from_lists([[0]], columns=2))
    with pytest.raises(ValueError, match="neither features nor texts"):
        DataSet(Part(y), Part(y))
    with pytest.raises(ValueError, match="that the other lacks"):
        DataSet(Part(y, None, Texts.of("ab")), Part(y, Csr(y.offsets, y.indices, torch.ones(2), y.shape)))

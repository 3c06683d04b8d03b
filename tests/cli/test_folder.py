"""A run's folder: what is ours may be deleted and continued, whenever the run before it was killed; nothing else is."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gossamer import files
from gossamer.cli.train import folder

NEW, OLD = {"seed": 1}, {"seed": 0}
OURS = (
    "dense/checkpoint.pt", "sparse/checkpoint.pt", "report.json", "report.html", "compact/compact.json",
    "compact/weights-0123456789abcdef.safetensors", "events/dense/events.out.tfevents.1.host.2.0.gossamer",
    ".report.json.0123456789ab.part", "sparse/.checkpoint.pt.0123456789ab.part",
    "compact/.weights-0123456789abcdef.safetensors.0123456789ab.part",
)  # fmt: skip
FOREIGN = (
    "notes.txt", "dense/notes.txt", "dense/checkpoint.pt.bak", "compact/weights-mine.safetensors", "compact/read/me",
    "events/events.out.tfevents.1.host.2.0", "events/dense/events.out.tfevents.1.host.2.0", "events/x/checkpoint.pt",
    "mine/checkpoint.pt", ".report.json.part", "compact/weights-0123456789abcdef.safetensors.bak",
)  # fmt: skip


def _write(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def _tree(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run of other settings, with files of the user's among its own."""
    folder.prepare(tmp_path / "out", OLD, overwrite=False)
    _write(tmp_path / "out", OURS + FOREIGN)
    return tmp_path / "out"


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(out: Path) -> None:
    assert folder.inspect(out, NEW, resume=False, overwrite=True) is False
    folder.prepare(out, NEW, overwrite=True)
    left = _tree(out)
    assert json.loads(left.pop("run.json"))["identity"] == NEW
    assert left == {name: name for name in FOREIGN}
    assert not (out / "sparse").exists(), "a folder that only held ours goes too"


def test_resuming_deletes_drafts_only(out: Path) -> None:
    folder.prepare(out, OLD, overwrite=False)
    left = _tree(out)
    left.pop("run.json")
    assert left == {name: name for name in OURS + FOREIGN if not name.endswith("ab.part")}


@pytest.mark.parametrize(
    "content",
    [
        {"identity": OLD},
        {"name": "sweep", "id": 7},
        {"format": folder.TRAIN.format, "version": 99, "identity": OLD},
        [],
        {"format": folder.TRAIN.format, "version": folder.VERSION, "identity": OLD},
        files.sealed({"format": folder.TRAIN.format, "version": folder.VERSION}),
    ],
    ids=["old", "foreign", "newer", "list", "unsealed", "without identity"],
)
@pytest.mark.parametrize("flag", ["resume", "overwrite", "neither"])
def test_a_run_json_of_others_makes_no_folder_ours(out: Path, content: object, flag: str) -> None:
    (out / "run.json").write_text(json.dumps(content))
    before = _tree(out)
    with pytest.raises(ValueError, match=r"run\.json cannot be read: .*; nothing here is deleted"):
        folder.inspect(out, OLD, resume=flag == "resume", overwrite=flag == "overwrite")
    assert _tree(out) == before


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("name", ["run.json", "report.html", "sparse/checkpoint.pt", "compact/compact.json"])
def test_what_would_stop_a_later_write_is_found_first(out: Path, make, name: str) -> None:
    (out / name).unlink()
    make(out / name)
    with pytest.raises(ValueError, match=r"expected a file|cannot be read"):
        folder.inspect(out, OLD, resume=True, overwrite=False)


@pytest.mark.parametrize("name", ["dense", "events", "events/sparse"])
def test_links_and_files_in_place_of_folders_are_left_alone(out: Path, tmp_path: Path, name: str) -> None:
    shutil.rmtree(out / name, ignore_errors=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "checkpoint.pt").write_text("precious")
    (out / name).symlink_to(tmp_path / "precious")
    with pytest.raises(NotADirectoryError, match="is a link; expected a folder of the run"):
        folder.inspect(out, NEW, resume=False, overwrite=True)
    folder.prepare(out, NEW, overwrite=True)
    assert (tmp_path / "precious" / "checkpoint.pt").read_text() == "precious"
    (out / name).unlink()
    (out / name).write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder of the run"):
        folder.inspect(out, NEW, resume=False, overwrite=True)


def test_a_changed_run_json_is_the_same_or_refused(out: Path) -> None:
    content, draw = (out / "run.json").read_bytes(), random.Random(0)
    for _ in range(300):
        changed = bytearray(content)
        bit = draw.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        (out / "run.json").write_bytes(changed[: draw.randrange(len(content))] if draw.random() < 0.2 else changed)
        try:
            assert folder.inspect(out, OLD, resume=True, overwrite=False)
        except ValueError as error:
            assert "run.json" in str(error)
    for deep in (
        b"[" * 100_000,
        content[:-3] + b', "more": ' + b"[" * 900 + b"]" * 900 + b"}",
        b" " * (1 << 20) + content,
    ):
        (out / "run.json").write_bytes(deep)
        with pytest.raises(ValueError, match=r"run\.json cannot be read"):
            folder.inspect(out, NEW, resume=False, overwrite=True)


def _killed_at(event: int, out: Path, *, overwrite: bool) -> bool:
    """Run `prepare` in a process that dies before its `event`-th change of the disk; whether it came to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(name: str, arguments: tuple) -> None:
            nonlocal seen
            if name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (name == "open" and arguments[1] != "r"):
                seen += 1
                if seen == event:
                    os._exit(9)

        sys.addaudithook(watch)
        folder.prepare(out, NEW, overwrite=overwrite)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_run_killed_at_any_moment_can_be_continued_or_overwritten(out: Path, tmp_path: Path) -> None:
    finished, event = False, 0
    while not finished:
        event += 1
        there = shutil.copytree(out, tmp_path / f"killed-{event}")
        finished = _killed_at(event, there, overwrite=True)
        assert folder.inspect(there, NEW, resume=False, overwrite=True) is False
        identity = json.loads((there / "run.json").read_text())["identity"]
        more = folder.inspect(there, identity, resume=True, overwrite=False)
        if identity == OLD:
            assert more and all((there / name).exists() for name in OURS), "nothing goes before the folder says so"
            continue
        if any((there / name).exists() for name in OURS):
            assert not more, "what is half deleted is not continued"
        folder.prepare(there, NEW, overwrite=False)
        left = _tree(there)
        assert "clearing" not in json.loads(left.pop("run.json")) and left == {name: name for name in FOREIGN}
    assert event > len(OURS)


def test_a_first_run_killed_at_any_moment_leaves_a_folder_to_begin_in(tmp_path: Path) -> None:
    finished, event = False, 0
    while not finished:
        event += 1
        there = tmp_path / f"killed-{event}"
        finished = _killed_at(event, there, overwrite=False)
        for overwrite in (True, False):
            folder.inspect(there, NEW, resume=not overwrite, overwrite=overwrite)
        folder.prepare(there, NEW, overwrite=False)
        assert list(_tree(there)) == ["run.json"]
    assert event > 3


def test_many_look_at_one_path_at_once(tmp_path: Path) -> None:
    """Each says that it can be written, and nothing of their looks stays."""
    target = tmp_path / "a" / "b" / "c.json"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: files.check_target(target), range(400)))
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file/a/b", "x" * 300, "a/" + "x" * 300 + "/b", "x" * 300 + "/a/b", "a/b/" + "x" * 250):
        with pytest.raises(OSError, match="cannot be written: ") as raised:
            files.check_target(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert [each.name for each in tmp_path.iterdir()] == ["file"]

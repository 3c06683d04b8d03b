"""A checkpoint is read unharmed and whole, of this run and this program, or refused in a line that names the field."""

from __future__ import annotations

import copy
import errno
import io
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer import files
from gossamer.cli.train import checkpoint
from gossamer.cli.train.loop import Stage
from gossamer.cli.train.restore import restore

from .conftest import same

IDENTITY = {"seed": 0, "method": "rigl"}
TOTAL = 8


def _stage(steps: int = 0, name: str = "sparse", *, adam: bool = True) -> Stage:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    make = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = make(model.parameters(), lr=0.1, **({} if adam else {"momentum": 0.9}))
    method = (
        gs.training.MEST(model, optimizer, density=0.5, total_steps=TOTAL, update_every=2) if name == "sparse" else None
    )
    stage = Stage(name, model, optimizer, method)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        stage.step += 1
    if steps:
        stage.curve.append({"step": steps, "epoch": 1, "loss": 1.0, "accuracy": 0.5})
        stage.snapshots.append({"step": 0, "density": {"0": [0.5, None]}})
    return stage


def _bytes(content: dict[str, Any], folder: Path) -> bytes:
    checkpoint.save(folder / "a.pt", content)
    return (folder / "a.pt").read_bytes()


@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_what_is_saved_comes_back(tmp_path: Path, name: str, adam: bool) -> None:
    trained, fresh = _stage(5, name, adam=adam), _stage(0, name, adam=adam)
    checkpoint.save(tmp_path / "a.pt", {"identity": IDENTITY, **trained.state()})
    restore(fresh, checkpoint.load(tmp_path / "a.pt", IDENTITY), total=TOTAL)
    same(fresh.state(), trained.state())
    assert torch.load(tmp_path / "a.pt", weights_only=True)["step"] == 5, "the checksum is in nobody's way"


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    content = _bytes({"identity": IDENTITY, **_stage(3).state()}, tmp_path)
    draw = random.Random(0)
    places = [draw.randrange(8 * len(content)) for _ in range(300)] + [8 * len(content) - i for i in range(1, 900, 9)]
    for bit in places:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "b.pt").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"checkpoint .*b\.pt cannot be read: it .*checksum"):
            checkpoint.load(tmp_path / "b.pt", IDENTITY)


def test_every_cut_is_found(tmp_path: Path) -> None:
    content = _bytes({"identity": IDENTITY, "x": torch.zeros(9)}, tmp_path)
    for length in (0, 1, 21, 79, 80, 81, 82, len(content) // 2, len(content) - 1):
        (tmp_path / "b.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match="checksum"):
            checkpoint.load(tmp_path / "b.pt", IDENTITY)
    (tmp_path / "b.pt").write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="checksum"):
        checkpoint.load(tmp_path / "b.pt", IDENTITY)


def test_a_file_without_a_checksum_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"format": 1, "identity": IDENTITY}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"has no checksum.*older version.*--overwrite"):
        checkpoint.load(tmp_path / "a.pt", IDENTITY)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: None])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"checkpoint .*a\.pt cannot be read"):
        checkpoint.load(tmp_path / "a.pt", IDENTITY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"identity": {**IDENTITY, "seed": 1}}, r"other settings: seed 1 \(now 0\)"),
        ({"identity": {"seed": 0}}, r"other settings: method None \(now 'rigl'\)"),
        ({"identity": {**IDENTITY, "new": None}}, r"other settings: new None \(now None\)"),
        ({"identity": "mine"}, "identity is 'mine'; expected the settings"),
        ({}, "identity is None; expected the settings"),
        ({"identity": IDENTITY, "format": 3}, "its format is 3, expected 2"),
        ({"identity": IDENTITY, "format": "2"}, "its format is '2', expected 2"),
    ],
)
def test_other_settings_and_versions_are_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    checkpoint.save(tmp_path / "a.pt", content)
    with pytest.raises(ValueError, match=said):
        checkpoint.load(tmp_path / "a.pt", IDENTITY)


NAN, INF = float("nan"), float("inf")
FIELDS = {
    "stage": ("dense", None),
    "step": (NAN, -1, TOTAL + 1, 5.0, True, "5", None, torch.tensor(5)),
    "loss_sum": (NAN, INF, "1", None, 1j),
    "curve": (None, {}, [1], [{}], [{"step": 1, "epoch": 1, "accuracy": NAN}], [{"step": 1, "epoch": 1}]),
    "snapshots": (None, [1], [{"step": -1, "density": {}}], [{"step": 0}], [{"step": 0, "density": {"a": ["b"]}}]),
    "method": (None, {}, 7),
    "model": (None, {}, []),
    "model.0.weight": (None, 1.0, torch.zeros(8, 7), torch.zeros(8, 6).double(), torch.zeros(8, 6).to_sparse()),
    "optimizer": (None, {}, {"state": {}, "param_groups": None}, {"state": {}, "param_groups": []}),
    "optimizer.param_groups.0.betas": (None, (0.8, 0.999), [0.9, 0.999]),
    "optimizer.param_groups.0.lr": (NAN, "0.1", None),
    "optimizer.param_groups.0.params": ([0], [1, 0, 2, 3, 4, 5]),
    "optimizer.state.0": (None, 3),
    "optimizer.state.0.step": (torch.tensor(NAN), torch.tensor(-1.0), torch.zeros(2), 3, None),
    "optimizer.state.0.exp_avg": (torch.zeros(3), 1.0, torch.zeros(8, 6).half()),
    "method.step": (NAN, -1, "3", 4),
    "method.format": (None, 99),
    "method.method": ("set", None),
    "method.config.density": (0.4, None),
    "method.config.seed": (1,),
    "method.shapes": (None, {"0.weight": 3}),
    "method.masks": (None, {}, []),
    "method.masks.0.weight": (None, 3, {}),
    "method.masks.0.weight.bits": (None, torch.zeros(3).byte(), torch.zeros(6)),
    "method.masks.0.weight.shape": (None, [6, 8], [48], [2**40, 2**40], [-8, -6], [8.0, 6.0]),
    "method.masks.0.weight.axes": (None, {"5": {}}, {"0": {"size": 9, "bits": torch.zeros(2).byte()}}, {"x": {}}),
    "method.channels": (3, {"a": {}}, {"a": {"alive": torch.tensor([-1]), "here": torch.tensor([0])}}),
    "method.ever_active": (None, {}, {"bits": {}, "removed": {}}),
    "method.ever_active.bits.0.weight": (None, torch.zeros(3).byte()),
    "method.churn": (None, {}, {"0.weight": NAN}),
    "method.pending": (None, [3], "update"),
    "method.window": (None, {"0.weight": torch.zeros(2)}, {"none": torch.zeros(2)}),
    "method.owed": (None, "0.weight", ["none"]),
    "method.kept": (None, {"0.weight": torch.zeros(2)}, {"none": torch.zeros(2)}),
    "method.warmup": (None, {"0.weight": 3}, {"0.weight": torch.zeros(2)}),
    "method.history": (None, [3]),
    "method.extra": (None, 3),
}  # fmt: skip


def _holder(state: Any, path: str) -> tuple[Any, Any]:
    """The container and the key of a field; names of parameters have dots of their own."""
    while True:
        if isinstance(state, list):
            head, _, rest = path.partition(".")
            key: Any = int(head)
        else:
            key = next(k for k in state if path == str(k) or path.startswith(f"{k}."))
            rest = path[len(str(key)) + 1 :]
        if not rest:
            return state, key
        state, path = state[key], rest


@pytest.mark.parametrize("path", FIELDS)
def test_a_malformed_field_is_named(path: str) -> None:
    right = _stage(3).state()
    holder, key = _holder(copy.deepcopy(right), path)
    for value in FIELDS[path] if path in ("method.owed", "method.kept") else (*FIELDS[path], KeyError):
        state = copy.deepcopy(right)
        holder, key = _holder(state, path)
        if value is KeyError:
            del holder[key]
        else:
            holder[key] = value
        if value is KeyError and path in ("optimizer.param_groups.0", "optimizer.state.0", "optimizer.state.0.exp_avg"):
            continue
        with pytest.raises(ValueError) as caught:
            restore(_stage(), state, total=TOTAL)
        assert any(word in str(caught.value) for word in path.split(".")), (path, value, str(caught.value))


def test_swapped_and_shuffled_fields_are_the_same_or_refused() -> None:
    """Any two values of a state change places; what is accepted gives back the state it was given."""
    draw, right = random.Random(0), _stage(3).state()

    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]

    refused = 0
    for _ in range(150):
        state = copy.deepcopy(right)
        (one, i), (other, j) = draw.sample(places(state), 2)
        one[i], other[j] = other[j], one[i]
        fresh = _stage()
        try:
            restore(fresh, copy.deepcopy(state) if not _circular(state) else state, total=TOTAL)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000
        else:
            same({k: v for k, v in fresh.state().items() if k not in ("model", "method", "optimizer")},
                 {k: v for k, v in state.items() if k not in ("model", "method", "optimizer")})  # fmt: skip
    assert refused > 75


def _circular(state: Any) -> bool:
    try:
        repr(state)
    except RecursionError:
        return True
    return False


class _Full(io.BufferedRandom):
    """A file on a disk that has room for 1000 bytes more, and then an error of this number."""

    number = errno.ENOSPC

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 1000:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(data)


def _full_disk(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    real = open
    monkeypatch.setattr(_Full, "number", number)

    def opened(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "x" not in mode:
            return real(path, mode, *rest, **options)
        real(path, "x").close()
        return _Full(io.FileIO(path, "r+"))

    monkeypatch.setattr(files, "open", opened, raising=False)


def test_a_full_disk_is_named_and_the_checkpoint_of_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"identity": IDENTITY, "step": 1})
    _full_disk(monkeypatch)
    with pytest.raises(OSError, match=r"no space left on the disk for .*a\.pt; the file of before is kept") as caught:
        checkpoint.save(path, {"identity": IDENTITY, "step": 2, "x": torch.zeros(5000)})
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.load(path, IDENTITY)["step"] == 1 and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO])
def test_any_write_that_fails_names_the_file_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path, said = tmp_path / "a.pt", re.escape(os.strerror(number))
    checkpoint.save(path, {"identity": IDENTITY, "step": 1})
    _full_disk(monkeypatch, number)
    with pytest.raises(OSError, match=rf"a\.pt cannot be written: {said}; the file of before is kept") as caught:
        checkpoint.save(path, {"identity": IDENTITY, "step": 2, "x": torch.zeros(5000)})
    assert caught.value.errno == number and checkpoint.load(path, IDENTITY)["step"] == 1
    with pytest.raises(OSError, match=rf"b\.json cannot be written: {said}; nothing was written"):
        files.write_json(tmp_path / "b.json", {"long": "x" * 2000})
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_full_disk_at_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _full_disk(monkeypatch)
    with pytest.raises(OSError, match=r"no space left on the disk for .*report\.json; nothing was written"):
        gs.report.write(tmp_path, {"title": "A run", "table": {"dense": {"accuracy": 0.5}}, "notes": ["long" * 500]})
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gossamer", "version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.startswith("gossamer: error: ") and len(done.stderr.splitlines()) == 1
    assert "output cannot be written" in done.stderr
    shutil.rmtree(tmp_path)

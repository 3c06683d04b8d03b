"""Missing, empty, damaged and misshapen data: one error that names the file."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs

Image = pytest.importorskip("PIL.Image")

X = np.zeros((6, 1, 4, 4), dtype=np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


# Named after this process: what another run left behind says nothing about this one.
MARKER = Path(tempfile.gettempdir()) / f"gossamer-pickle-ran-{os.getpid()}"


class Runs:
    """Unpickling this writes a file: what allow_pickle=False must prevent."""

    def __reduce__(self):
        return (Path.touch, (MARKER,))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, r"holds the arrays \['x'\]; expected x and y"),
        ({"x": X, "y": Y, "x_test": X}, "both or none of x_test and y_test"),
        ({"x": X.astype(str), "y": Y}, "x in .* has dtype <U"),
        ({"x": X.astype(complex), "y": Y}, "x in .* has dtype complex128"),
        ({"x": X[0, 0, 0], "y": Y}, r"x in .* has shape \(4,\)"),
        ({"x": X[:0], "y": Y}, r"x in .* has shape \(0, 1, 4, 4\)"),
        ({"x": X, "y": Y.astype(float)}, "y in .* has dtype float64"),
        ({"x": X, "y": Y[:3]}, r"y in .* shape \(3,\); expected integer class labels, shape \(6,\)"),
        ({"x": X, "y": Y - 1}, "the label -1"),
        ({"x": X, "y": 0 * Y}, "at least two classes"),
        ({"x": X + np.nan, "y": Y}, "not finite"),
        ({"x": X, "y": Y, "x_test": X[:, :, :2], "y_test": Y}, r"x_test in .* \(1, 2, 4\), x of \(1, 4, 4\)"),
        ({"x": np.array([Runs()], dtype=object), "y": Y}, "not a readable .npz"),
    ],
)
def test_npz(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=said) as caught:
        gs.data.load(f"npz:{path}")
    assert "bad.npz" in str(caught.value)
    assert not MARKER.exists()


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 40]) + data[middle + 40 :]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"not a zip", _cut, _flip, lambda data: pickle.dumps([1])]
)
def test_damaged_npz(tmp_path: Path, damage) -> None:
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(20, 1, 8, 8)), y=np.arange(20) % 2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"damaged\.npz is not a readable \.npz"):
        gs.data.load(f"npz:{path}")


def _picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda root: None, "root has no class folders"),
        (lambda root: _picture(root / "a" / "1.png"), "the one class 'a'"),
        (lambda root: (_picture(root / "a" / "1.png"), (root / "b").mkdir()), "root/b holds no image"),
        (lambda root: [_picture(root / c / f"{i}.png", (8, 8 + i)) for c in "ab" for i in range(2)],
         r"1\.png is 9x8 pixels, .*0\.png 8x8"),
        (lambda root: [_picture(root / place / "1.png") for place in ("train/a", "train/b", "test/a", "test/c")],
         r"the classes \['c'\] in .*test only and the classes \['b'\] in .*train only"),
    ],
)  # fmt: skip
def test_imagefolder(tmp_path: Path, prepare, said: str) -> None:
    (tmp_path / "root").mkdir()
    prepare(tmp_path / "root")
    with pytest.raises(ValueError, match=said):
        gs.data.load(f"imagefolder:{tmp_path / 'root'}")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"text", _cut])
def test_damaged_image(tmp_path: Path, damage) -> None:
    for place in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        _picture(tmp_path / place)
    victim = tmp_path / "b" / "2.png"
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(ValueError, match=r"b/2\.png is not a readable image"):
        gs.data.load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ("mnist", {}, ValueError, "data is 'mnist'; expected digits, imagefolder:PATH or npz:PATH"),
        ("npz:", {}, ValueError, "data is 'npz:'"),
        ("npz:/no/such.npz", {}, FileNotFoundError, "no file /no/such.npz"),
        ("imagefolder:/no/such", {}, FileNotFoundError, "no folder /no/such"),
        ("digits", {"image_size": 3}, ValueError, "image_size is 3"),
        ("digits", {"test_fraction": 1.0}, ValueError, "test_fraction is 1.0"),
        ("digits", {"test_fraction": 1e-5}, ValueError, "no test example"),
    ],
)
def test_sources(source: str, options: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        gs.data.load(source, **options)


@pytest.mark.parametrize(("source", "package"), [("digits", "sklearn.datasets"), ("imagefolder:{}", "PIL")])
def test_a_missing_extra_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    for place in ("a/1.png", "b/1.png"):
        _picture(tmp_path / place)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'needs .*: pip install "\w'):
        gs.data.load(source.format(tmp_path))

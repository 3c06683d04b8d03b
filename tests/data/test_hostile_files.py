"""Small files that claim much, links in circles, pipes: refused in one line, at once, within the memory of the file."""

from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import gossamer as gs
from gossamer.data import imagefolder
from gossamer.data.splits import split

Image = pytest.importorskip("PIL.Image")

X, Y = np.linspace(0, 1, 6 * 16, dtype=np.float32).reshape(6, 1, 4, 4), np.array([0, 1, 2, 0, 1, 2])


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _claiming(
    shape: tuple[int, ...], descr: str = "<f4", content: bytes = b"", version: tuple[int, int] = (1, 0)
) -> bytes:
    """An array's bytes whose header says whatever it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + content


def _archive(path: Path, members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def _refused(path: Path, said: str, most: int = 1 << 24) -> None:
    """`said` is said, and no more memory was asked for on the way than `most` bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said) as caught:
            gs.data.load(f"npz:{path}")
        assert str(path) in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (_claiming((2**40,)), "x claims 4398046511104 bytes"),
        (_claiming((2**40, 2**40, 2**40)), "x claims"),
        (_claiming((-1, 6)), "x claims"),
        (_claiming((1,), "<U100000000"), "x claims 400000000 bytes"),
        (_claiming((2**60,), "|S0"), "x .* has dtype"),
        (_claiming((6,), "|O"), "x holds Python objects"),
        (_claiming((6, 1), content=bytes(25)), "x claims 24 bytes.* and has 25"),
        (_claiming((6, 1), content=bytes(23)), "x claims 24 bytes.* and has 23"),
        (_claiming((6, 1), content=bytes(24), version=(3, 0)), r"npy format \(3, 0\)"),
        (b"\x93NUMPY", "not a readable .npz"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{", "not a readable .npz"),
        (_claiming((6, 1))[:40], "not a readable .npz"),
        (_claiming((6, 1)).replace(b"shape", b"sharp"), "not a readable .npz"),
    ],
)  # fmt: skip
def test_headers_that_claim_what_is_not_there(tmp_path: Path, x: bytes, said: str) -> None:
    _refused(_archive(tmp_path / "a.npz", [("x.npy", x), ("y.npy", _npy(Y))]), said)


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    path = _archive(tmp_path / "a.npz", [("x.npy", _npy(np.zeros((6, 1 << 22), np.float32))), ("y.npy", _npy(Y))])
    assert path.stat().st_size < 1 << 20
    _refused(path, "claim to hold 100")
    small = _archive(tmp_path / "b.npz", [("x.npy", _npy(np.zeros((6, 1 << 10), np.float32))), ("y.npy", _npy(Y))])
    assert gs.data.load(f"npz:{small}", test_fraction=0.5).input_shape == (1 << 10,), (
        "what is small unpacked may shrink as it likes"
    )


def test_sizes_in_the_table_that_are_not_so(tmp_path: Path) -> None:
    """The central directory claims 3 GB for a member of 400 bytes, or a packed part larger than the file."""
    path = _archive(tmp_path / "a.npz", [("x.npy", _npy(X)), ("y.npy", _npy(Y))])
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")
    for offset in (20, 24):
        changed = bytearray(content)
        struct.pack_into("<I", changed, entry + offset, 3_000_000_000)
        path.write_bytes(changed)
        _refused(path, "claim to hold|not a readable")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_numpy_does_not_write(tmp_path: Path, packing: int) -> None:
    _refused(_archive(tmp_path / "a.npz", [("x.npy", _npy(X)), ("y.npy", _npy(Y))], packing), "numpy does not write")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["x.npy", "x"])
def test_an_array_that_is_there_twice(tmp_path: Path, second: str) -> None:
    members = [("x.npy", _npy(X)), (second, _npy(X + 1)), ("y.npy", _npy(Y))]
    _refused(_archive(tmp_path / "a.npz", members), "holds an array twice")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 2**40, 0, 1, 2**40], "label 1099511627776"),
        ([0, 1, 10**5, 0, 1, 1], "go up to 100000; .*np.unique"),
        (np.array([0, 1, 2**64 - 1, 0, 1, 2], dtype=np.uint64), "label 18446744073709551615"),
        (["cat", "dog", "cat", "dog", "cat", "dog"], "has dtype <U3 .*; expected integer"),
    ],
)
def test_labels_that_are_identifiers_are_refused_with_their_maximum(tmp_path: Path, labels, said: str) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    _refused(tmp_path / "a.npz", said)


def test_few_examples_of_many_classes_keep_their_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=[0, 999, 2, 0, 999, 2], x_test=X, y_test=Y)
    assert gs.data.load(f"npz:{tmp_path / 'a.npz'}").classes == 1000


def test_numbers_beyond_float32_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X.astype(np.float64) * 1e300, y=Y)
    _refused(tmp_path / "a.npz", "not finite")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save, order: str) -> None:
    save(
        tmp_path / "a.npz",
        x=np.asarray(X[:, 0].astype(">f8"), order=order),
        y=Y.astype(np.uint8),
        x_test=X[:2],
        y_test=Y[:2],
    )
    data = gs.data.load(f"npz:{tmp_path / 'a.npz'}")
    unscaled = data.train_x * float(X.std()) + float(X.mean())
    torch.testing.assert_close(unscaled, torch.from_numpy(X), rtol=1e-5, atol=1e-6)
    assert data.train_y.tolist() == Y.tolist()


def test_changed_bytes_give_the_same_data_or_an_error(tmp_path: Path) -> None:
    """Bits flipped and ends cut off, in a plain and a packed archive."""
    draw = random.Random(0)
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / "a.npz"
        save(path, x=X, y=Y)
        right, content = gs.data.load(f"npz:{path}", test_fraction=0.5), path.read_bytes()
        for _ in range(150):
            changed = bytearray(content)
            for _ in range(draw.choice((1, 1, 3))):
                bit = draw.randrange(8 * len(content))
                changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed[: draw.randrange(len(content))] if draw.random() < 0.2 else changed)
            try:
                data = gs.data.load(f"npz:{path}", test_fraction=0.5)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                assert torch.equal(data.train_x, right.train_x) and torch.equal(data.test_y, right.test_y)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file(tmp_path: Path, make) -> None:
    make(tmp_path / "a.npz")
    _refused(tmp_path / "a.npz", "it is a (folder|pipe), expected a file")


def test_a_split_draws_class_by_class() -> None:
    """In one pass over all classes the same examples are held out as in a pass for each."""
    labels = torch.randint(0, 40, (300,), generator=torch.Generator().manual_seed(3)) * 7
    generator, held_out = torch.Generator().manual_seed(5), []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out += members[: min(round(0.3 * len(members)), len(members) - 1)].tolist()
    train, test = split(labels, test_fraction=0.3, seed=5)
    assert test.tolist() == sorted(held_out) and sorted([*train.tolist(), *held_out]) == list(range(300))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), len(name), dtype=np.uint8)).save(tmp_path / "root" / name)
    return tmp_path / "root"


def _large_png(path: Path, side: int) -> None:
    """A few hundred bytes that claim side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9)) + bytes(99))
    )


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.parametrize("size", [None, 8])
def test_images_beyond_pillows_limit(pictures: Path, side: int, size: int | None) -> None:
    """Pillow only warns of the smaller one."""
    _large_png(pictures / "b" / "3.png", side)
    with pytest.raises(ValueError, match=r"b/3\.png is too large \(PIL\.Image\.MAX_IMAGE_PIXELS\)"):
        gs.data.load(f"imagefolder:{pictures}", image_size=size)


def test_sizes_that_no_machine_holds_are_refused_before_the_first_is_read(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("read before"))
    with pytest.raises(ValueError, match=r"4 images of 1000000x1000000 pixels take .* GiB, .*smaller image_size"):
        gs.data.load(f"imagefolder:{pictures}", image_size=10**6)
    Image.new("RGB", (5, 4)).save(pictures / "b" / "3.png")
    with pytest.raises(ValueError, match=r"3\.png is 5x4 pixels, .*1\.png 4x4"):
        gs.data.load(f"imagefolder:{pictures}")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda root: os.mkfifo(root / "b" / "3.png"), r"b/3\.png is a pipe; expected an image"),
        (lambda root: (root / "b" / "3.png").symlink_to("none"), r"b/3\.png is a link that leads nowhere; expected"),
        (lambda root: (root / "b" / "3.png").symlink_to("3.png"), r"b/3\.png is a link that leads nowhere; expected"),
        (lambda root: (root / "b" / "c").symlink_to(root), "b/c is a link to a folder that holds it"),
        (lambda root: (root / "b" / "c").symlink_to("."), "b/c is a link to a folder that holds it"),
        (lambda root: (root / "c").symlink_to(root), "root/c is a link to a folder that holds it"),
        (lambda root: (root / "c").symlink_to("none"), "root/c is a link that leads nowhere"),
        (lambda root: (root / "b" / "3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"),
         r"b/3\.png is not a readable image"),
    ],
)  # fmt: skip
def test_nothing_that_looks_like_an_image_is_passed_over(pictures: Path, prepare, said: str) -> None:
    prepare(pictures)
    with pytest.raises(ValueError, match=said):
        gs.data.load(f"imagefolder:{pictures}")


def test_a_folder_that_cannot_be_read_is_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "b" / "locked").mkdir()
    real = os.listdir

    def listdir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(imagefolder.os, "listdir", listdir)
    with pytest.raises(ValueError, match="b/locked cannot be read: Permission denied"):
        gs.data.load(f"imagefolder:{pictures}")


def test_links_to_images_and_names_of_any_bytes_are_read(pictures: Path, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(other)
    os.rename(os.fsencode(pictures) + b"/a/2.png", other + b"/\xff.png")
    os.symlink(other, os.fsencode(pictures) + b"/\xe9t\xe9")
    data = gs.data.load(f"imagefolder:{pictures}", image_size=4, test_fraction=0.4)
    assert data.names == ("a", "b", "\\xe9t\\xe9") and sum(len(y) for y in (data.train_y, data.test_y)) == 4
    for name in data.names:
        name.encode()

"""Classifiers on disk: what comes back, what is refused, and that nothing is ever half there."""

import json
import os

import pytest
import torch

from gossamer.xmc.heads import store
from gossamer.xmc.heads.store import StoreError, load, load_shares, save

ARRAYS = {
    "values": torch.randn(300, 4).bfloat16(),
    "indices": torch.randint(60000, (300, 4)).to(torch.uint16),
    "bias": torch.randn(300),
    "steps": torch.tensor(7),
    "empty": torch.zeros(0, 5),
}


def same(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        assert torch.equal(store.bytes_of(found[name].contiguous()), store.bytes_of(x))


@pytest.mark.parametrize("mmap", [True, False])
def test_bits_come_back(tmp_path, mmap):
    save(tmp_path, {"width": 9}, ARRAYS)
    found = load(tmp_path, mmap=mmap, verify=True)
    assert found.settings == {"width": 9}
    same(found.tensors)


def test_what_is_written_into_a_map_stays_in_the_process(tmp_path):
    save(tmp_path, {}, ARRAYS)
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    load(tmp_path).tensors["bias"].fill_(5)
    same(load(tmp_path, verify=True).tensors)


def test_a_save_replaces_the_one_before_wholly(tmp_path):
    save(tmp_path, {"of": "first"}, ARRAYS)
    opened = load(tmp_path)
    save(tmp_path, {"of": "second"}, {"values": torch.ones(2, 2)})
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".json"]
    assert load(tmp_path).settings == {"of": "second"}
    same(opened.tensors)  # the files are gone, what was mapped is not


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, {"of": "first"}, ARRAYS)
    before = sorted(path.name for path in tmp_path.iterdir())
    written = []

    def fails(path, x):
        if len(written) == 2:
            raise OSError(28, "no space left on the disk")
        written.append(path)
        return real(path, x)

    real = store._write
    monkeypatch.setattr(store, "_write", fails)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, {"of": "second"}, ARRAYS)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    same(load(tmp_path, verify=True).tensors)


def edit(folder, change):
    record = json.loads((folder / "head.json").read_text())
    change(record)
    (folder / "head.json").write_text(json.dumps(store.files.sealed(record)))


def array(folder, name):
    return next(folder.glob(f"{name}-*.bin"))


HOSTILE = {
    "nothing there": (lambda f: (f / "head.json").unlink(), "head.json is missing"),
    "no JSON": (lambda f: (f / "head.json").write_text("{"), "head.json: it is not JSON"),
    "a list": (lambda f: (f / "head.json").write_text("[]"), "it is no header of gossamer.xmc"),
    "huge header": (lambda f: (f / "head.json").write_bytes(b" " * (2 << 20)), "larger than"),
    "pipe": (lambda f: ((f / "head.json").unlink(), os.mkfifo(f / "head.json")), "a pipe, expected a file"),
    "edited": (
        lambda f: (f / "head.json").write_text((f / "head.json").read_text().replace("300", "200", 1)),
        "was edited: its checksum",
    ),
    "newer": (lambda f: edit(f, lambda r: r.update(version=2)), "it has version 2; this gossamer reads 1"),
    "foreign": (lambda f: edit(f, lambda r: r.update(format="gossamer.compact")), "it is no header of gossamer.xmc"),
    "no arrays": (lambda f: edit(f, lambda r: r.pop("arrays")), "no settings or no arrays"),
    "cut short": (lambda f: os.truncate(array(f, "values"), 1000), r"has 1000 bytes, expected 2400 of values"),
    "too long": (lambda f: os.truncate(array(f, "bias"), 5000), r"has 5000 bytes, expected 1200 of bias"),
    "missing array": (lambda f: array(f, "bias").unlink(), r"bias-.*\.bin is missing, which head.json names"),
    "another shape": (
        lambda f: edit(f, lambda r: r["arrays"]["values"].update(shape=[2**62, 4])), "has 2400 bytes, expected",
    ),
    "negative shape": (lambda f: edit(f, lambda r: r["arrays"]["values"].update(shape=[-1, 4])), "the entry of values"),
    "unknown dtype": (lambda f: edit(f, lambda r: r["arrays"]["values"].update(dtype="object")), "the entry of values"),
    "file elsewhere": (
        lambda f: edit(f, lambda r: r["arrays"]["values"].update(file="../../etc/passwd")), "the entry of values",
    ),
    "entry is a list": (lambda f: edit(f, lambda r: r["arrays"].update(values=[1])), "the entry of values"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, said", HOSTILE.values(), ids=HOSTILE)
def test_hostile_folders_are_refused_in_one_sentence(tmp_path, spoil, said):
    save(tmp_path, {}, ARRAYS)
    spoil(tmp_path)
    with pytest.raises(StoreError, match=said):
        load(tmp_path)


def test_a_changed_byte_is_found_by_verify(tmp_path):
    save(tmp_path, {}, ARRAYS)
    path = array(tmp_path, "values")
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(content)
    load(tmp_path)
    with pytest.raises(StoreError, match=r"values-.*bin is damaged or was edited"):
        load(tmp_path, verify=True)


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"values must have one of the dtypes float32.*got torch\.float64"):
        save(tmp_path, {}, {"values": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"lower-case letters and '_', got '../a'"):
        save(tmp_path, {}, {"../a": torch.zeros(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["head.json", "shares.json"])
def test_headers_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text('{"format": "theirs"}')
    for write in (lambda: save(tmp_path, {}, ARRAYS), lambda: store.write_shares(tmp_path, [], [0])):
        with pytest.raises(FileExistsError, match=rf"{name} is no header of .*choose another folder"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        save(tmp_path / name, {}, ARRAYS)


def test_shares_follow_one_another(tmp_path):
    for at, (begin, end) in enumerate(((0, 100), (100, 300))):
        save(tmp_path / f"share-{'0' * 12}-{at}", {}, {"values": ARRAYS["values"][begin:end]})
    (tmp_path / "share-111111111111-0").mkdir()  # of an older save
    store.write_shares(tmp_path, [f"share-{'0' * 12}-{at}" for at in range(2)], [0, 100, 300])
    assert not (tmp_path / "share-111111111111-0").exists()
    shares = load_shares(tmp_path)
    assert [share[:2] for share in shares] == [(0, 100), (100, 300)]
    whole = torch.cat([share[2].tensors["values"] for share in shares])
    assert torch.equal(whole, ARRAYS["values"])
    store.write_shares(tmp_path, [f"share-{'0' * 12}-{at}" for at in range(2)], [0, 90, 300])
    with pytest.raises(StoreError, match=r"has 100 labels, shares\.json says 90"):
        load_shares(tmp_path)
    store.write_shares(tmp_path, ["../elsewhere"], [0, 300])
    with pytest.raises(StoreError, match="folders are named share-"):
        load_shares(tmp_path)

"""Every published format is read as it is written; what is wrong in a file is one ValueError that says where."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.xmc.data import Csr, DataSet, Part, Texts, load, save
from gossamer.xmc.data.formats import lines
from gossamer.xmc.data.formats import rows as module
from gossamer.xmc.data.formats.json_lines import read_json
from gossamer.xmc.data.formats.rows import parse_ids, parse_pairs
from gossamer.xmc.data.formats.scipy_npz import read_npz, write_npz
from gossamer.xmc.data.formats.sparse_text import read_old, read_pairs, read_sparse, write_sparse
from gossamer.xmc.data.formats.text import read_named, read_texts

NAMES = ("b", "c/d", "Ähre", "é")  # in the order of their code points


def _part(rows: list[list[int]], *, features: bool, texts: bool, exclude: bool = False) -> Part:
    labels = Csr.from_lists(rows, columns=4)
    x = Csr.from_lists([[0, i % 5] for i in range(len(rows))], columns=6)
    values = torch.tensor([0.1, -2.5e-30, 3e8, 1.0] * len(rows))[: x.nnz]
    return Part(
        labels,
        Csr(x.offsets, x.indices, values, x.shape) if features else None,
        Texts.of([f"größe {i}\u2028x" * (i != 1) for i in range(len(rows))]) if texts else None,
        Csr.from_lists([[3], *[[]] * (len(rows) - 1)], columns=4) if exclude else None,
    )


def _data(*, features: bool, texts: bool, label_texts: bool = False) -> DataSet:
    train = _part([[0, 3], [], [1, 2, 3], [2]], features=features, texts=texts)
    test = _part([[3], [0], []], features=features, texts=texts, exclude=True)
    return DataSet(train, test, Texts.of(NAMES) if label_texts else None, "mine", {"seed": 3})


def _same(a: Csr | None, b: Csr | None) -> bool:
    if a is None or b is None:
        return a is b
    alike = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("offsets", "indices"))
    values = (a.values is None and b.values is None) or bool(torch.equal(a.values, b.values))
    return alike and values and a.shape == b.shape and a.indices.dtype == b.indices.dtype


def _equal(a: DataSet, b: DataSet) -> bool:
    pairs = [(getattr(a, part), getattr(b, part)) for part in ("train", "test")]
    return all(
        _same(x.labels, y.labels) and _same(x.features, y.features) and _same(x.exclude, y.exclude)
        and (x.texts and list(x.texts)) == (y.texts and list(y.texts))
        for x, y in pairs
    ) and (a.label_texts and list(a.label_texts)) == (b.label_texts and list(b.label_texts))  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "has"),
    [
        ("standard", {"features": True, "texts": True, "label_texts": True}),
        ("standard", {"features": False, "texts": True}),
        ("old", {"features": True, "texts": False}),
        ("json", {"features": False, "texts": True, "label_texts": True}),
        ("json", {"features": False, "texts": True}),
        ("lightxml", {"features": False, "texts": True, "label_texts": True}),
        ("pecos", {"features": True, "texts": True, "label_texts": True}),
        ("pecos", {"features": True, "texts": False}),
        ("renee", {"features": False, "texts": True, "label_texts": True}),
    ],
)
def test_what_is_saved_is_loaded(tmp_path: Path, layout: str, has: dict[str, bool]) -> None:
    data = _data(**has)
    save(data, tmp_path / "d", layout=layout)
    loaded = load(tmp_path / "d", cache=False)
    assert _equal(data, loaded) and (loaded.name, loaded.facts) == ("mine", {"seed": 3})
    assert _equal(data, load(tmp_path / "d")) and (tmp_path / "d" / ".gossamer-xmc.npz").exists()
    assert _equal(data, load(tmp_path / "d"))  # from the cache


def test_scipy_reads_what_is_written_and_is_read(tmp_path: Path) -> None:
    import scipy.sparse

    x = _data(features=True, texts=False).train.features
    write_npz(tmp_path / "x.npz", x)
    assert (scipy.sparse.load_npz(tmp_path / "x.npz") != x.to_scipy()).nnz == 0
    for kind in ("csr", "csc"):
        matrix = scipy.sparse.random(50, 30, 0.1, kind, np.float64, np.random.default_rng(0))
        scipy.sparse.save_npz(tmp_path / "y.npz", matrix)
        assert _same(read_npz(tmp_path / "y.npz", values=True), Csr.from_scipy(matrix))
        assert _same(read_npz(tmp_path / "y.npz", values=False), Csr.from_scipy(matrix, values=False))


def test_the_examples_of_the_formats(tmp_path: Path) -> None:
    old, new, pairs = (tmp_path / name for name in ("train.txt", "trn_X_Y.txt", "filter_labels_test.txt"))
    old.write_text("2 5 4\n0,3 1:0.5 4:1\n 2:0.25\n")
    x, y = read_old(old)
    assert (x.offsets.tolist(), x.indices.tolist(), x.values.tolist()) == ([0, 2, 3], [1, 4, 2], [0.5, 1.0, 0.25])
    assert (y.offsets.tolist(), y.indices.tolist(), y.shape) == ([0, 2, 2], [0, 3], (2, 4))
    new.write_text("2 4\n0:1.00000 3:1.00000\n\n")
    assert _same(read_sparse(new, values=False), y)
    pairs.write_text("0 3\n1 0\n0 1\n0 3\n")
    assert _same(read_pairs(pairs, (2, 4)), Csr.from_lists([[1, 3], [0]], columns=4))
    json = tmp_path / "trn.json.gz"
    record = '{"uid":"B0","title":"a","content":"b","target_ind":[3,0,3],"target_rel":[1.0,1,0]}\n'
    json.write_bytes(gzip.compress(record.encode()))
    texts, labels = read_json(json, 4)
    assert list(texts) == ["a b"] and labels is not None and labels.row(0).tolist() == [0, 3]


def test_what_is_named_twice_is_sorted_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"3 9\r\n7:1 2:3 7:0.5\r\n\r\n 8:2\t1:1 \r\n")
    x = read_sparse(path, values=True)
    assert (x.offsets.tolist(), x.indices.tolist(), x.values.tolist()) == ([0, 2, 2, 4], [2, 7, 1, 8], [3, 1.5, 1, 2])
    path.write_text("1 9\n7:1 2:0 1:1 7:1")
    assert read_sparse(path, values=False).indices.tolist() == [1, 7]


def test_labels_by_name_are_numbered_in_their_order_over_both_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("10 9\n\n")
    (tmp_path / "b").write_text("z 9")
    (first, second), names = read_named([tmp_path / "a", tmp_path / "b"])
    assert list(names) == ["10", "9", "z"]
    assert _same(first, Csr.from_lists([[0, 1], []], 3)) and _same(second, Csr.from_lists([[1, 2]], 3))


SPARSE, OLD, TEXTS, JSON, PAIRS, NPZ = (
    lambda path: read_sparse(path, values=True), read_old, read_texts, lambda path: read_json(path, 4),
    lambda path: read_pairs(path, (2, 4)), lambda path: read_npz(path, values=True),
)  # fmt: skip


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (SPARSE, b"", r"it is empty; expected a header of rows, columns"),
        (SPARSE, b"1\n\n", r":1: the header has 1 words; expected 2: rows, columns"),
        (SPARSE, b"1 x\n\n", r":1: the header says 'x' columns"),
        (SPARSE, b"-1 4\n\n", r":1: the header says '-1' rows"),
        (SPARSE, b"1 99999999999\n\n", r":1: the header says '9+' columns; expected a number from 0 to 4294967296"),
        (SPARSE, b"2 4\n0:1\n", r":1: the header says 2 rows, but the file has 1"),
        (SPARSE, b"1 4\n0:1\n1:1\n", r":1: the header says 1 rows, but the file has more"),
        (SPARSE, b"2 4\n0:1\n1:1 4:1\n", r":3: it has the id '4'; expected a number from 0 to 3"),
        (SPARSE, b"1 4\n-1:1\n", r":2: it has the id '-1'"),
        (SPARSE, b"1 4\n99999999999999999999999:1\n", r":2: it has the id '9+'"),
        (SPARSE, b"1 4\n1.0:1\n", r":2: it has the id '1.0'"),
        (SPARSE, b"1 4\n0:nan\n", r":2: it has the value 'nan'; expected a finite float32"),
        (SPARSE, b"1 4\n0:1e39\n", r":2: it has the value '1e39'"),
        (SPARSE, b"1 4\n0:0x10\n", r":2: it has the value '0x10'"),
        (SPARSE, b"1 4\n0:1_0\n", r":2: it has the value '1_0'"),
        (SPARSE, b"1 4\n0:2-3 1:5:e\n", r":2: it has the value '2-3'"),
        (SPARSE, b"1 9\n1:2-3 4:\n", r":2: it has the value '2-3'"),  # as many numbers as there should be
        (SPARSE, b"1 4\n0:3e38 0:3e38\n", r"row 0 has the value inf"),
        (SPARSE, b"1 4\n0\n", r":2: it has '0'; expected column:value"),
        (SPARSE, b"1 4\n0: 1\n", r":2: it has the value ''"),
        (SPARSE, b"1 4\n\xff:1\n", r":2: it has the id '\\\\xff'"),
        (SPARSE, "1 4\n٣:1\n".encode(), r":2: it has the id '٣'"),
        (OLD, b"1 5\n0 1:1\n", r":1: the header has 2 words; expected 3: rows, columns, labels"),
        (OLD, b"1 5 4\n1:1\n", r":2: it has the id '1:1'"),
        (OLD, b"1 5 4\n4 1:1\n", r":2: it has the id '4'; expected a number from 0 to 3"),
        (OLD, b"1 5 4\n0,,1 1:1\n", r":2: it has the id ''"),
        (OLD, b"2 5 4\n0 1:1\n0 7:1\n", r":3: it has the id '7'; expected a number from 0 to 4"),
        (TEXTS, b"", "it is empty"),
        (TEXTS, b"good\nb\xe4d\n", r":2: it is not UTF-8: byte 0xe4 at place 1"),
        (JSON, b"", "it is empty"),
        (JSON, b'{"title": "a", "target_ind": []}\nx\n', r":2: it is not JSON"),
        (JSON, b"[" * 100000, r":1: it is not JSON"),
        (JSON, b"[]\n", r":1: it is a JSON list; expected an object"),
        (JSON, b"{}\n", r":1: it has neither 'title' nor 'content'"),
        (JSON, b'{"title": 3}\n', r":1: its 'title' is 3; expected text"),
        (JSON, b'{"title": "a", "target_ind": [4]}\n', r":1: it has the label 4; expected a number from 0 to 3"),
        (JSON, b'{"title": "a", "target_ind": [true]}\n', r":1: it has the label True"),
        (JSON, b'{"title": "a", "target_ind": 3}\n', r":1: its 'target_ind' is 3; expected a list"),
        (JSON, b'{"title": "a", "target_ind": [1], "target_rel": []}\n', r":1: its 'target_rel' is \[\]; expected 1"),
        (PAIRS, b"0\n", r":1: it has 1 words; expected a row and a label"),
        (PAIRS, b"0 1\n2 1\n", r":2: it has the id '2'; expected a number from 0 to 1"),
        (PAIRS, b"0 4\n", r":1: it has the id '4'"),
        (NPZ, b"", "is not a readable .npz file"),
        (NPZ, b"PK\x03\x04", "is not a readable .npz file"),
    ],
)  # fmt: skip
def test_a_malformed_file_says_where(tmp_path: Path, read: Callable[[Path], object], content: bytes, said: str) -> None:
    path = tmp_path / "given.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def _npz(**changed: np.ndarray) -> dict[str, np.ndarray]:
    good = {"format": np.array(b"csr"), "shape": np.array([2, 4]), "data": np.ones(3, np.float32),
            "indices": np.array([0, 1, 3]), "indptr": np.array([0, 2, 3])}  # fmt: skip
    return good | changed


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (_npz(format=np.array(b"coo")), "its format is 'coo'; expected csr or csc"),
        (_npz(format=np.array([1, 2])), "its format is None"),
        (_npz(shape=np.array([2, -4])), "its shape is"),
        (_npz(shape=np.array([2, 1 << 40])), "its shape is"),
        (_npz(shape=np.array([1 << 32, 2]), format=np.array(b"csc")), "its shape claims 4294967296 rows"),
        (_npz(shape=np.array([3, 4])), "its indptr does not rise"),
        (_npz(indptr=np.array([0, 3, 2])), "its indptr does not rise"),
        (_npz(indptr=np.array([0.0, 2, 3])), "its indptr is float64"),
        (_npz(indices=np.array([0, 1, 4])), "its indices go from 0 to 4; expected 0 to 3"),
        (_npz(indices=np.array([-1, 1, 3])), "its indices go from -1"),
        (_npz(data=np.ones(2)), r"its data is float64\[2\]; expected 3 numbers"),
        (_npz(data=np.array([1, np.nan, 1])), "row 0 has the value nan"),
        (_npz(data=np.array([1, 1e300, 1])), "row 0 has the value inf"),
        (_npz(data=np.array([1, 2, 3], dtype=object)), "Python objects"),
        ({"data": np.ones(3)}, "it lacks"),
    ],
)
def test_an_npz_whose_arrays_do_not_agree(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "X.trn.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=said) as caught:
        read_npz(path, values=True)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [SPARSE, OLD, TEXTS, JSON, PAIRS, NPZ])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(ValueError, match=kind):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none"):
        read(tmp_path / "none")


def test_packed_files_that_are_cut_off_damaged_or_bombs(tmp_path: Path, monkeypatch) -> None:
    whole = gzip.compress(b'{"title": "a", "target_ind": []}\n' * 9000)
    path = tmp_path / "trn.json.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"trn\.json\.gz: it is cut off before its end"):
        read_json(path, 4)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"it is no whole \.gz file"):
        read_json(path, 4)
    path.write_bytes(gzip.compress(bytes(1 << 22)))  # zeros without a line break
    monkeypatch.setattr(lines, "LONGEST", 1 << 20)
    with pytest.raises(ValueError, match=r"trn\.json\.gz:1: the line is longer than 1048576 bytes"):
        read_json(path, 4)
    path.write_bytes(whole)
    monkeypatch.setattr(lines, "SMALL", 1 << 10)
    with pytest.raises(ValueError, match=rf"its {len(whole)} bytes unpack to more than {len(whole) * 200}"):
        read_json(path, 4)


def test_a_header_that_claims_much_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("1000000000000 4294967296\n0:1\n")
    tracemalloc.start()
    with pytest.raises(ValueError, match="the header says 1000000000000 rows, but the file has 1"):
        read_sparse(path, values=True)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


WORDS = st.sampled_from(
    [b"0", b"3", b"17", b":", b":1", b":0.5", b",", b" ", b"  ", b"\t", b"\r", b"-", b"+", b".", b"e", b"e5", b"1e3",
     b"nan", b"inf", b"0x1", b"_", b"9" * 20, b"\x00", b"\xff", b"3:1 ", b"0:2.5e-3 ", b"3,0"]
)  # fmt: skip


@given(st.lists(st.lists(WORDS).map(b"".join), min_size=1, max_size=5))
def test_blocks_are_parsed_as_their_lines_are(rows: list[bytes]) -> None:
    """The fast way and the slow one agree on every text: the same numbers, or the same error."""
    for parse in (parse_pairs, parse_ids):
        assert _outcome(parse, rows) == _outcome(lambda *a, parse=parse: _one_by_one(parse, *a), rows)


def _outcome(parse: Callable, rows: list[bytes]) -> object:
    try:
        found = parse(rows, Path("f"), 1, 18)
    except ValueError as error:
        return str(error)
    values = None if found.values is None else found.values.tolist()
    return found.counts.tolist(), found.ids.tolist(), values


def _one_by_one(parse: Callable, rows: list[bytes], path: Path, first: int, columns: int):
    """By the definition alone."""
    read = module._pairs if parse is parse_pairs else module._ids
    whole = module._collected([read(row, path, first + i, columns) for i, row in enumerate(rows)])
    return whole if parse is parse_pairs else module.Rows(whole.counts, whole.ids, None)


@given(st.binary(max_size=200), st.sampled_from([SPARSE, OLD, TEXTS, JSON, PAIRS, NPZ]), st.booleans())
def test_no_bytes_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes, read, headed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(b"2 4 4\n" * (headed and read is OLD) + b"2 4\n" * (headed and read is SPARSE) + content)
    try:
        read(path)
    except ValueError as error:
        assert str(error).startswith(str(path))


@settings(max_examples=50)
@given(st.data())
def test_a_damaged_file_of_ours_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    x = _data(features=True, texts=False).train.features
    writer, reader = data.draw(st.sampled_from([(write_npz, NPZ), (write_sparse, SPARSE)]))
    writer(path, x)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        reader(path).validate()
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_blocks_of_any_size_hold_the_same_lines(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f.txt"
    for text in (b"", b"\n", b"a", b"a\n\nbc\n", b"a\r\nlonger line\n\n\nx"):
        path.write_bytes(text)
        blocks = list(lines.blocks(path, size=size))
        found = [line for block in blocks for line in block.lines()]
        assert found == [line.rstrip(b"\r") for line in text.split(b"\n")[: None if text and text[-1] != 10 else -1]]
        firsts = np.cumsum([1, *(len(block.lines()) for block in blocks)])
        assert [block.first for block in blocks] == firsts[:-1].tolist()

"""A data set from a folder, in whatever layout it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from gossamer.xmc.data import cache as cached
from gossamer.xmc.data import folder as ours
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.dataset import DataSet, Part
from gossamer.xmc.data.formats.json_lines import read_json
from gossamer.xmc.data.formats.lines import Malformed, shown
from gossamer.xmc.data.formats.scipy_npz import read_npz
from gossamer.xmc.data.formats.sparse_text import read_old, read_pairs, read_sparse
from gossamer.xmc.data.formats.text import read_named, read_texts
from gossamer.xmc.data.layouts import Layout, Source, recognise
from gossamer.xmc.data.texts import Texts


def load(folder: str | os.PathLike[str], *, cache: bool = True) -> DataSet:
    """Read the data set that lies in a folder.

    The layouts (see `docs/xmc.md`): the extreme classification repository's new and old formats, its raw JSON, and
    those of LightXML, PECOS, Renee, ELIAS and DEXA; also what `save` writes.

    Args:
        cache: read from, and leave, `.gossamer-xmc.npz` in the folder, which holds the parsed data set and is taken
            only while the files that it was made of are the same.

    Raises:
        FileNotFoundError: there is no folder, or a file is missing beside another.
        ValueError: no known layout, or a file is malformed; the message names the file, and the line.

    >>> import tempfile, pathlib
    >>> from gossamer import xmc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in "trn", "tst":
    ...         _ = (pathlib.Path(folder) / f"{part}_X_Y.txt").write_text("2 4\\n0:1 3:1\\n\\n")
    ...         _ = (pathlib.Path(folder) / f"{part}_X.txt").write_text("first\\nsecond\\n")
    ...     data = xmc.data.load(folder)
    >>> data.labels, data.train.labels.row(0).tolist(), data.test.texts[1]
    (4, [0, 3], 'second')
    """
    place = Path(os.path.expanduser(folder))
    layout = recognise(place)
    if cache and (found := cached.read(place, layout.paths())) is not None:
        return found
    found = _read(place, layout)
    if cache:
        cached.write(place, layout.paths(), found)
    return found


def _read(place: Path, layout: Layout) -> DataSet:
    source = layout.label_texts
    label_texts = None if source is None else _texts(source.format, source.paths[0])
    labels: list[Csr] = []
    features: list[Csr | None] = []
    texts: list[Texts | None] = []
    if layout.labels.format == "named":
        labels, label_texts = read_named(list(layout.labels.paths))
    else:
        for found in _labels(layout.labels, None if label_texts is None else len(label_texts)):
            labels.append(found.labels)
            features.append(found.features)
            texts.append(found.texts)
    if layout.features is not None and layout.features != layout.labels:
        reader = read_sparse if layout.features.format == "sparse" else read_npz
        features = [reader(path, values=True) for path in layout.features.paths]
    if layout.texts is not None and layout.texts != layout.labels:
        texts = [_texts(layout.texts.format, path) for path in layout.texts.paths]
    name, facts = ours.described(place)
    try:
        train, test = (
            Part(labels[i], features[i] if layout.features else None, texts[i] if layout.texts else None,
                 None if path is None else read_pairs(path, labels[i].shape))
            for i, path in enumerate(layout.exclude)
        )  # fmt: skip
        return DataSet(train, test, label_texts, name, facts)
    except Malformed:
        raise
    except ValueError as error:  # files that do not go together
        raise Malformed(f"{shown(place)}: {error}") from None


def _labels(source: Source, labels: int | None) -> list[Part]:
    """The label sets of both parts, with what else lies in their files.

    Args:
        labels: how many there are, where a file of label texts says so.
    """
    if source.format == "sparse":
        return [Part(read_sparse(path, values=False)) for path in source.paths]
    if source.format == "npz":
        return [Part(read_npz(path, values=False)) for path in source.paths]
    if source.format == "old":
        return [Part(labels=y, features=x) for x, y in map(read_old, source.paths)]
    out = []
    for path in source.paths:
        texts, found = read_json(path, labels)
        if found is None:
            raise Malformed(f"{shown(path)}:1: it has no 'target_ind'")
        out.append(Part(found, None, texts))
    most = max(part.labels.shape[1] for part in out)  # each file names as many as it names
    return [Part(replace(p.labels, shape=(p.labels.shape[0], most)), None, p.texts) for p in out]


def _texts(kind: str, path: Path) -> Texts:
    return read_texts(path) if kind == "lines" else read_json(path, None)[0]

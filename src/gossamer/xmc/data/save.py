"""A data set into a folder, in any of the layouts that `load` recognises."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gossamer.xmc.data import folder
from gossamer.xmc.data.dataset import DataSet, Part
from gossamer.xmc.data.formats.json_lines import write_json
from gossamer.xmc.data.formats.scipy_npz import write_npz
from gossamer.xmc.data.formats.sparse_text import write_old, write_pairs, write_sparse
from gossamer.xmc.data.formats.text import check_names, write_named, write_texts
from gossamer.xmc.data.texts import Texts

Write = Callable[[Path], None]


def save(data: DataSet, out: str | os.PathLike[str], *, layout: str = "standard", overwrite: bool = False) -> Path:
    """Write a data set, and a data.json that says what the folder is.

    Args:
        layout: "standard" (label sets and features in the new format of the extreme classification repository, texts
            one a line), "old" (its old format: features and label sets in one file, no texts), "json" (texts and
            labels), "lightxml" (texts, labels by name), "pecos" (npz, texts) or "renee" (labels npz, texts in `raw`).
        overwrite: delete a data set of ours that is there.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds other things, or a data set and `overwrite` is False.
        ValueError: an unknown layout, or one that cannot hold what the data set has.

    >>> import tempfile
    >>> from gossamer import xmc
    >>> data = xmc.data.planted(rows=100, test_rows=10, labels=20, width=16, seed=0).data
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = xmc.data.save(data, place, layout="old")
    ...     names = sorted(path.name for path in folder.iterdir())
    >>> names
    ['data.json', 'test.txt', 'train.txt']
    """
    place = Path(os.path.expanduser(out))
    if layout not in _PARTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(_PARTS)}")
    writes = _writes(data, layout)
    record = {"name": data.name, "layout": layout, "labels": data.labels, "facts": dict(data.facts)}
    folder.prepare(place, list(writes), record, overwrite=overwrite)
    for name, write in writes.items():
        (place / name).parent.mkdir(exist_ok=True)
        write(place / name)
    return place


def _writes(data: DataSet, layout: str) -> dict[str, Write]:
    """What is written, by the name of the file."""
    parts = (("trn", "train", data.train), ("tst", "test", data.test))
    out: dict[str, Write] = {}
    for short, long, part in parts:
        out |= _PARTS[layout](data, part, short, long)
        if part.exclude is not None:
            out[f"filter_labels_{long}.txt"] = partial(write_pairs, matrix=part.exclude)
    texts = data.label_texts
    if texts is not None and layout == "json":
        out["lbl.json.gz"] = partial(write_json, texts=texts, labels=None)
    elif texts is not None and layout in ("standard", "pecos", "renee"):
        out["raw/Y.txt" if layout == "renee" else "Y.txt"] = partial(write_texts, texts=texts)
    return out


def _standard(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    out: dict[str, Write] = {f"{short}_X_Y.txt": partial(write_sparse, matrix=part.labels)}
    if part.features is not None:
        out[f"{short}_X_Xf.txt"] = partial(write_sparse, matrix=part.features)
    if part.texts is not None:
        out[f"{short}_X.txt"] = partial(write_texts, texts=part.texts)
    return out


def _old(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    if part.features is None or part.texts is not None:
        raise ValueError("layout 'old' holds features and no texts; the data set has texts: 'standard' holds both")
    return {f"{long}.txt": partial(write_old, features=part.features, labels=part.labels)}


def _json(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    return {f"{short}.json.gz": partial(write_json, texts=_only_texts(part, "json"), labels=part.labels)}


def _lightxml(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    texts = _only_texts(part, "lightxml")
    names = data.label_texts
    if names is None or list(names) != sorted(set(names)):
        raise ValueError("layout 'lightxml' numbers labels in the order of their names; expected sorted label texts")
    check_names(names)
    return {
        f"{long}_raw_texts.txt": partial(write_texts, texts=texts),
        f"{long}_labels.txt": partial(write_named, labels=part.labels, names=names),
    }


def _pecos(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    out: dict[str, Write] = {f"Y.{short}.npz": partial(write_npz, matrix=part.labels)}
    if part.features is not None:
        out[f"X.{short}.npz"] = partial(write_npz, matrix=part.features)
    if part.texts is not None:
        out[f"X.{short}.txt"] = partial(write_texts, texts=part.texts)
    return out


def _renee(data: DataSet, part: Part, short: str, long: str) -> dict[str, Write]:
    texts = _only_texts(part, "renee")
    return {
        f"Y.{short}.npz": partial(write_npz, matrix=part.labels),
        f"raw/{short}_X.txt": partial(write_texts, texts=texts),
    }


def _only_texts(part: Part, layout: str) -> Texts:
    if part.texts is None or part.features is not None:
        raise ValueError(f"layout {layout!r} holds texts and no features; 'standard' holds both")
    return part.texts


_PARTS: dict[str, Callable[[DataSet, Part, str, str], dict[str, Write]]] = {
    "standard": _standard, "old": _old, "json": _json, "lightxml": _lightxml, "pecos": _pecos, "renee": _renee,
}  # fmt: skip

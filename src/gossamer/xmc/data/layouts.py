"""Which files of a folder hold what: the layouts in which data sets are published, in one table.

Labels, features, texts, excluded pairs and the texts of labels are looked for one by one, and the first pair of files
that is there is taken. So a folder may mix layouts, as published ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gossamer import files
from gossamer.xmc.data.formats.lines import shown

# format, training file, test file; of a .json file, the same with .gz is taken too
LABELS = (
    ("sparse", "trn_X_Y.txt", "tst_X_Y.txt"),
    ("npz", "Y.trn.npz", "Y.tst.npz"),
    ("named", "train_labels.txt", "test_labels.txt"),
    ("json", "trn.json", "tst.json"),
    ("json", "raw_text/trn.json", "raw_text/tst.json"),
    ("old", "train.txt", "test.txt"),
)
FEATURES = (
    ("sparse", "trn_X_Xf.txt", "tst_X_Xf.txt"),
    ("npz", "X.trn.npz", "X.tst.npz"),
    ("npz", "tfidf-attnxml/X.trn.npz", "tfidf-attnxml/X.tst.npz"),
)
TEXTS = (
    ("lines", "trn_X.txt", "tst_X.txt"),
    ("lines", "raw/trn_X.txt", "raw/tst_X.txt"),
    ("lines", "X.trn.txt", "X.tst.txt"),
    ("lines", "train_raw_texts.txt", "test_raw_texts.txt"),
    ("json", "trn.json", "tst.json"),
    ("json", "raw_text/trn.json", "raw_text/tst.json"),
)
EXCLUDE = (
    ("pairs", "filter_labels_train.txt", "filter_labels_test.txt"),
    ("pairs", "trn_filter_labels.txt", "tst_filter_labels.txt"),
)
LABEL_TEXTS = (
    ("lines", "Y.txt"),
    ("lines", "raw/Y.txt"),
    ("lines", "output-items.txt"),
    ("json", "lbl.json"),
    ("json", "raw_text/lbl.json"),
)


@dataclass(frozen=True)
class Source:
    """Files of one format: of the training and of the test part, or one."""

    format: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Layout:
    """Where each piece of a data set lies; None for what there is not."""

    labels: Source
    features: Source | None
    texts: Source | None
    exclude: tuple[Path | None, Path | None]
    label_texts: Source | None

    def paths(self) -> list[Path]:
        """Every file, each once."""
        found = [s for s in (self.labels, self.features, self.texts, self.label_texts) if s is not None]
        every = [path for source in found for path in source.paths] + [
            path for path in self.exclude if path is not None
        ]
        return list(dict.fromkeys(every))


def recognise(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        FileNotFoundError: there is no folder, or a training file has no test file beside it.
        NotADirectoryError: it is none.
        ValueError: it holds no labels in a known layout, or neither features nor texts.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {shown(folder)}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{shown(folder)} is {files.kind(folder)}; expected a folder")
    labels = _first(folder, LABELS)
    if labels is None:
        expected = ", ".join(dict.fromkeys(f"{train} and {test}" for _, train, test in LABELS))
        raise ValueError(f"{shown(folder)} holds no label sets in a known layout; expected one of: {expected}")
    features = labels if labels.format == "old" else _first(folder, FEATURES)
    texts = _first(folder, TEXTS)
    if features is None and texts is None:
        expected = ", ".join(train for _, train, _ in (*FEATURES, *TEXTS))
        raise ValueError(f"{shown(folder)} holds neither features nor texts; expected one of: {expected}")
    ours, theirs = ([_there(folder / pair[place]) for pair in EXCLUDE] for place in (1, 2))
    names = ((kind, _there(folder / name)) for kind, name in LABEL_TEXTS)
    # Files of label texts number the labels as they like; labels given by name are numbered by their names.
    label_texts = next((Source(kind, (path,)) for kind, path in names if path and labels.format != "named"), None)
    exclude = (next(filter(None, ours), None), next(filter(None, theirs), None))
    return Layout(labels, features, texts, exclude, label_texts)


def _first(folder: Path, table: tuple[tuple[str, str, str], ...]) -> Source | None:
    for kind, train, test in table:
        ours, theirs = _there(folder / train), _there(folder / test)
        if ours and theirs:
            return Source(kind, (ours, theirs))
        if ours or theirs:
            missing = folder / (test if ours else train)
            raise FileNotFoundError(f"there is no file {shown(missing)}, beside {shown(ours or theirs or folder)}")
    return None


def _there(path: Path) -> Path | None:
    """The file, or its packed form, if there is anything of that name (what it is, its reader finds out)."""
    packed = path.with_name(path.name + ".gz")
    if path.suffix == ".json" and not path.exists() and packed.exists():
        return packed
    return path if path.exists() else None

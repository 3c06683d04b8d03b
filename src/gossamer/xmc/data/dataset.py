"""A data set of extreme classification: examples with label sets, to train on and to test with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gossamer.xmc.data.csr import Csr
from gossamer.xmc.data.texts import Texts


@dataclass(frozen=True)
class Part:
    """Examples, row by row.

    Attributes:
        labels: Csr [rows, labels] without values.
        features: Csr [rows, width] with values, or None.
        texts: one an example, or None. Every part of a data set has features, or texts, or both.
        exclude: Csr [rows, labels] without values: labels that are never to be predicted for a row (an item itself
            among its neighbours); None where nothing is excluded.
    """

    labels: Csr
    features: Csr | None = None
    texts: Texts | None = None
    exclude: Csr | None = None

    def __post_init__(self) -> None:
        rows, columns = self.labels.shape
        if self.features is not None and self.features.shape[0] != rows:
            raise ValueError(f"features have {self.features.shape[0]} rows, labels {rows}; expected as many")
        if self.features is not None and self.features.values is None:
            raise ValueError("features have no values; expected a Csr with values")
        if self.texts is not None and len(self.texts) != rows:
            raise ValueError(f"there are {len(self.texts)} texts and {rows} rows of labels; expected as many")
        if self.exclude is not None and self.exclude.shape != (rows, columns):
            raise ValueError(
                f"exclude is of shape {self.exclude.shape}, labels of {(rows, columns)}; expected the same"
            )


@dataclass(frozen=True)
class DataSet:
    """A training part and a test part over the same labels.

    Attributes:
        train, test: the parts.
        label_texts: one a label, or None.
        name: what it is called.
        facts: what is worth knowing about where it comes from, for reports.
    """

    train: Part
    test: Part
    label_texts: Texts | None = None
    name: str = "data"
    facts: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ours, theirs = self.train, self.test
        if ours.labels.shape[1] != theirs.labels.shape[1]:
            raise ValueError(
                f"the training part has {ours.labels.shape[1]} labels, the test part {theirs.labels.shape[1]}; "
                "expected the same"
            )
        if (ours.features is None) != (theirs.features is None) or (ours.texts is None) != (theirs.texts is None):
            raise ValueError("one part has features or texts that the other lacks; expected the same of both")
        if ours.features is None and ours.texts is None:
            raise ValueError("there are neither features nor texts; expected one of them")
        widths = [part.features.shape[1] for part in (ours, theirs) if part.features is not None]
        if len(set(widths)) > 1:
            raise ValueError(
                f"the training part has {widths[0]} features, the test part {widths[1]}; expected the same"
            )
        if self.label_texts is not None and len(self.label_texts) != self.labels:
            raise ValueError(
                f"there are {len(self.label_texts)} label texts and {self.labels} labels; expected as many"
            )

    @property
    def labels(self) -> int:
        """The number of labels."""
        return self.train.labels.shape[1]

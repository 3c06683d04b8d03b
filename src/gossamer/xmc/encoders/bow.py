"""Bag of words: hashed words weighted by tf-idf, and an embedding of them that is trained. Needs no download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding_bag
from torch.optim import Adagrad, Optimizer

from gossamer.extras import needed
from gossamer.measure.memory import require_memory
from gossamer.xmc.data.csr import Csr, index_type
from gossamer.xmc.encoders.encoder import Encoder

_BLOCK = 8192  # texts that are counted together
FEATURES, WORDS = 1 << 16, 1 << 14
_BESIDE = 40  # bytes of a feature beside its embedding: its column and weight, and the counts that give them
LENGTH = 3.0  # of an example's words beside its embedding


class Bow(Encoder):
    """Words, or features that the data set brings: times a trained embedding, plus a bias, and beside that as they are.

    So a label can be a linear classifier of the few words that tell most of it, which serves rare labels too, and of
    the embedding, which says what words have in common.

    A word weighs (1 + log of its count) * log of the inverse document frequency; rows have length 1. Words of one hash
    are one, so there is no vocabulary to keep.

    Args:
        width: of the embedding; 0: none.
        features: hashes, or the width of the data set's own features.
        words: how many words are passed on as they are: at most so many, those of the most training examples, at least
            two; 0: none.
        given: whether it reads features (`Csr` with values) instead of texts; they are taken as they are.
        ngrams: the longest run of words that counts as a word of its own.
        relu: whether negative numbers of the embedding become zero.
        dropout: share of the words that the embedding lacks in a training step, and of its numbers that the head lacks.

    Raises:
        ValueError: naming the argument. MemoryError: it is larger than what is free; says what fits.

    >>> encoder = Bow(width=8, features=64)
    >>> encoder.learn(["a red apple", "a red pear"])
    >>> encoder(encoder.prepare(["red", ""])).shape
    torch.Size([2, 8])
    """

    kind: ClassVar[str] = "bow"
    usual_lr: ClassVar[float] = 0.05
    idf: Tensor
    column: Tensor

    def __init__(
        self,
        width: int = 512,
        features: int = FEATURES,
        *,
        words: int = WORDS,
        given: bool = False,
        ngrams: int = 1,
        relu: bool = False,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        sizes = ("width", width, 0), ("features", features, 1), ("words", words, 0), ("ngrams", ngrams, 1)
        for name, value, least in sizes:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not width + words:
            raise ValueError("width and words are both 0; expected one of them above")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.width, self.hashes, self.beside = width, features, min(words, features)
        self.given, self.ngrams, self.relu, self.dropout = given, ngrams, relu, dropout
        # As if each row had one feature of length 1: what many rows share grows with their number, not before it.
        self._require(4 * width + _BESIDE)
        self.weight = nn.Parameter(
            torch.randn(features, width, dtype=torch.float32, device="cpu").div_(max(width, 1) ** 0.5)
        )
        self.bias = nn.Parameter(torch.zeros(width, dtype=torch.float32, device="cpu"))
        self.register_buffer("idf", torch.ones(0 if given else features, dtype=torch.float32, device="cpu"))
        self.register_buffer(
            "column", torch.full((features,), -1, dtype=torch.int32, device="cpu")
        )  # of each word; -1: it has none

    def settings(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("width", "given", "ngrams", "relu", "dropout")}
        return {**plain, "features": self.hashes, "words": self.beside}

    def optimizer(self, lr: float) -> Optimizer:
        """Adagrad: words that are rare keep large steps, and a step touches only the words of its batch."""
        self._require(4 * self.width)  # its state is as large as the embedding
        return Adagrad(self.parameters(), lr=lr)

    def _require(self, each: int) -> None:
        """Refuse `each` bytes of every feature if they are more than what is free."""
        if self.given:
            said, count = f"features={self.hashes:,} with width={self.width:,}", self.hashes
        else:
            said, count = f"width={self.width:,} with {self.hashes:,} hashed words", max(self.width, 1)
        require_memory(said, count, each * self.hashes / count, "Take a smaller width, or fewer features")

    def learn(self, examples: Iterable[str] | Csr) -> None:
        """Document frequencies of the training texts, and which words are passed on."""
        rows, counts = 0, torch.zeros(self.hashes, dtype=torch.int64, device="cpu")
        for block in [self.prepare(examples)] if self.given else self._counted(examples):
            rows += block.shape[0]
            counts += block.column_counts()
        often = counts.argsort(descending=True, stable=True)[: self.beside]
        often = often[counts[often] >= min(2, rows)].sort().values  # a word of one example tells nothing of another
        self.column.fill_(-1)
        self.column[often] = torch.arange(len(often), dtype=torch.int32, device=self.column.device)
        if not self.given:
            # One document that has every word, so that no frequency is zero (scikit-learn's smooth_idf).
            self.idf.copy_(((1 + rows) / (1 + counts.double())).log() + 1)

    def prepare(self, examples: Iterable[str] | Csr) -> Csr:
        if self.given:
            if not isinstance(examples, Csr) or examples.values is None or examples.shape[1] != self.hashes:
                found = examples.shape if isinstance(examples, Csr) else type(examples).__name__
                raise TypeError(f"this encoder reads features [rows, {self.hashes}] with values, got {found}")
            return examples
        blocks = [self._weighted(block) for block in self._counted(examples)]
        return _joined(blocks, self.hashes)

    def forward(self, inputs: Csr) -> Tensor:
        """Csr [rows, features] -> float32[rows, width]."""
        device = self.weight.device
        if not self.width:
            return torch.zeros(inputs.shape[0], 0, dtype=torch.float32, device=device)
        places, offsets = inputs.indices.to(device).long(), inputs.offsets[:-1].to(device)
        values = torch.ones(inputs.nnz, dtype=torch.float32, device="cpu") if inputs.values is None else inputs.values
        values = dropout(values.to(device), self.dropout, self.training)
        out = self.bias + embedding_bag(
            places, self.weight, offsets, mode="sum", sparse=True, per_sample_weights=values
        )
        return dropout(out.relu() if self.relu else out, self.dropout, self.training)

    def features(self, inputs: Csr) -> Csr | None:
        """Csr [rows, beside]: the words that are passed on. Dropout leaves them: measured, it made them no better."""
        if not self.beside or inputs.values is None:
            return None
        columns = self.column.cpu()[inputs.indices.long()]
        kept = columns >= 0
        ends = nn.functional.pad(kept.cumsum(0), (1, 0))[inputs.offsets]
        return Csr(ends, columns[kept], LENGTH * inputs.values[kept], (inputs.shape[0], self.beside))

    def _counted(self, examples: Iterable[str] | Csr) -> Iterator[Csr]:
        """Counts of hashed words, a block of texts at a time."""
        if isinstance(examples, Csr | str):
            raise TypeError(f"this encoder reads texts, got {type(examples).__name__}")
        text = needed("sklearn.feature_extraction.text", "the bag of words needs scikit-learn", "xmc")
        hashed = text.HashingVectorizer(
            n_features=self.hashes, alternate_sign=False, norm=None, ngram_range=(1, self.ngrams), dtype="float32"
        )
        texts = iter(examples)
        while block := list(islice(texts, _BLOCK)):
            yield Csr.from_scipy(hashed.transform(block))

    def _weighted(self, block: Csr) -> Csr:
        assert block.values is not None
        values = (1 + block.values.log()) * self.idf.cpu()[block.indices.long()]
        owner = torch.repeat_interleave(torch.arange(block.shape[0], device="cpu"), block.counts())
        length = (
            torch.zeros(block.shape[0], dtype=torch.float32, device="cpu").index_add_(0, owner, values.square()).sqrt()
        )
        return Csr(block.offsets, block.indices, values / length[owner], block.shape)


def _joined(blocks: list[Csr], columns: int) -> Csr:
    """Rows of all blocks, one after the other."""
    if not blocks:
        return Csr(
            torch.zeros(1, dtype=torch.int64, device="cpu"),
            torch.zeros(0, dtype=index_type(columns), device="cpu"),
            torch.zeros(0, dtype=torch.float32, device="cpu"),
            (0, columns),
        )
    ends = torch.tensor([block.nnz for block in blocks], device="cpu").cumsum(0)
    offsets = [blocks[0].offsets, *(b.offsets[1:] + end for b, end in zip(blocks[1:], ends, strict=False))]
    values = torch.cat([block.values for block in blocks if block.values is not None])
    rows = sum(block.shape[0] for block in blocks)
    return Csr(torch.cat(offsets), torch.cat([block.indices for block in blocks]), values, (rows, columns))

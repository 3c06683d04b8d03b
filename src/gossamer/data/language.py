"""Real text that every machine has, as tokens: the sources of Python's own library.

    text = library(vocabulary=2048)
    for batch in windows(text.train, length=128, batch=16, steps=300):
        batch                                            # int64[16, 128]

Needs the package tokenizers, of the extra `serving`, for the byte-pair encoding that it trains.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.extras import needed

HELD_BACK = 10
"""One file of so many is for validation."""
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "pydoc_data", "site-packages", "encodings")


@dataclass(frozen=True, eq=False)
class Language:
    """Tokens of a text, and how they were made.

    Attributes:
        train, validation: int32[tokens], of different files.
        vocabulary: how many tokens there are. tokenizer: of the package tokenizers.
    """

    train: Tensor
    validation: Tensor
    vocabulary: int
    tokenizer: Any


def library(vocabulary: int = 2048, *, most: int = 4_000_000, folder: str | os.PathLike[str] | None = None) -> Language:
    """The sources of Python's library, split by file, in byte pairs learned from the training part.

    Args:
        vocabulary: number of tokens, at least 257: all bytes, and the mark between files.
        most: characters of text, at most. folder: of other sources; None: those of this Python.

    Raises:
        ValueError: a folder with fewer files than a split needs; a number out of range.
        ImportError: tokenizers is not installed.
    """
    for name, value, least in (("vocabulary", vocabulary, 257), ("most", most, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    root = Path(sysconfig.get_path("stdlib") if folder is None else os.path.expanduser(folder))
    files = [path for path in sorted(root.rglob("*.py")) if not set(path.relative_to(root).parts) & set(_LEFT_OUT)]
    if len(files) < HELD_BACK:
        raise ValueError(f"folder {root} has {len(files)} files of Python, expected at least {HELD_BACK}")
    texts, length = [], 0
    for path in files[::7] + [path for at, path in enumerate(files) if at % 7]:  # some of each package first
        said = path.read_text(encoding="utf-8", errors="replace")
        texts.append(said)
        length += len(said)
        if length >= most and len(texts) >= HELD_BACK:
            break
    train = [said for at, said in enumerate(texts) if at % HELD_BACK]
    tokenizer = byte_pairs(train, vocabulary)
    held = texts[::HELD_BACK]
    return Language(_tokens(tokenizer, train), _tokens(tokenizer, held), tokenizer.get_vocab_size(), tokenizer)


def byte_pairs(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer learned from texts, whose token 0 stands between files."""
    tokenizers: Any = needed("tokenizers", "texts in byte pairs need tokenizers", "serving")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|file|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts after one another, with token 0 before each."""
    encoded = tokenizer.encode_batch(texts)
    return torch.cat([torch.tensor([0, *each.ids], dtype=torch.int32, device="cpu") for each in encoded])


def windows(tokens: Tensor, *, length: int, batch: int, steps: int, seed: int = 0, first: int = 0) -> Iterator[Tensor]:
    """Batches int64[batch, length] of windows at random places, each a matter of (seed, step) alone.

    Args:
        first: the step to begin with, of a run that goes on.

    Raises:
        ValueError: the text is shorter than a window.

    >>> [x.tolist() for x in windows(torch.arange(5), length=4, batch=1, steps=2, seed=3)]
    [[[0, 1, 2, 3]], [[1, 2, 3, 4]]]
    """
    if tokens.numel() < length:
        raise ValueError(f"tokens must hold a window of length {length}, got {tokens.numel()}")
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        at = torch.randint(tokens.numel() - length + 1, (batch,), generator=generator, device="cpu")
        yield tokens[at[:, None] + torch.arange(length, device="cpu")].long()


def in_order(tokens: Tensor, *, length: int, batch: int, most: int | None = None) -> list[Tensor]:
    """Batches of windows one after the other, for validation; what does not fill a window is left out."""
    count = tokens.numel() // length
    count = count if most is None else min(count, most)
    return list(tokens[: count * length].view(count, length).long().split(batch))

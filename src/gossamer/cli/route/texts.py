"""What the commands of routing read: files of text, or Python's own documentation, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gossamer.cli.flags import text_of
from gossamer.cli.language import check_length
from gossamer.routing import saved
from gossamer.serving.calibrating.passkeys import beginning, python_topics
from gossamer.serving.checkpoints.loading import Loaded

_LARGEST = 1 << 26


def read(paths: Sequence[Path]) -> list[str]:
    """The texts of these files; of none, Python's documentation of its language.

    Raises:
        ValueError: a file that holds no text in UTF-8, or cannot be read.
    """
    if not paths:
        return [python_topics()]
    return [text_of("--text", path, limit=_LARGEST) for path in paths]


def check_run(checkpoint: Path, texts: str, flags: str) -> None:
    """Raise unless a run that stopped would go on with the texts that it began with, where it says which those were.

    Args:
        texts: the digest of what is read now. flags: that say what is read.

    Raises:
        ValueError: it would not, or the checkpoint cannot be read.
    """
    if not checkpoint.exists():
        return
    record, _ = saved.read(checkpoint, "run")
    if record.get("data") not in (None, texts):
        raise ValueError(
            f"{checkpoint} is of a run on other texts than {flags} give now; give those of then, or begin a new run "
            "with another --out"
        )


def pieces(loaded: Loaded, texts: Sequence[str], tokens: int, length: int) -> list[Tensor]:
    """The first tokens of texts, in pieces int64[1, up to length], no piece of two texts.

    Each piece begins with what the tokenizer puts before every text, which is not counted.

    Raises:
        ValueError: naming the flag: the model has no tokenizer, or was not made for pieces so long; texts are empty.
    """
    for flag, value in (("--tokens", tokens), ("--length", length)):
        if value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.source} has no tokenizer, which texts need")
    start = beginning(loaded.tokenizer)
    check_length(loaded, len(start), length)
    found: list[Tensor] = []
    for text in texts:
        # A token is rarely longer than 64 letters: the rest of a long text need not be read.
        ids = loaded.tokenizer.encode(text[: 64 * tokens], add_special_tokens=False)[:tokens]
        found += [torch.tensor([start + ids[at : at + length]], device="cpu") for at in range(0, len(ids), length)]
        tokens -= len(ids)
        if not tokens:
            break
    if not found:
        raise ValueError("--text holds no text")
    return found

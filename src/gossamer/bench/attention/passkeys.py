"""What a small trained decoder still answers when it decodes on a budget, by how its pages are ranked.

Its context is read as a prompt, densely. Questions and answers are decoded: whatever they find out about the context
they find in pages that were chosen for them, also in the first layer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from gossamer.bench.attention.decoders import transformers_here
from gossamer.bench.attention.passkey_model import FOLDER
from gossamer.bench.attention.passkey_task import STOP, Text, encode, write
from gossamer.bench.cells import Row, value
from gossamer.bench.section import Section, Settings, Table
from gossamer.serving.cache import SparseCache
from gossamer.serving.checkpoints.loading import load
from gossamer.serving.sparsity import Sparsity

KEYS, ASKED = 16, 4  # keys of a text, keys that are asked for
SIZES = ((1_024, 256), (4_096, 1_024), (4_096, 512), (4_096, 256))  # tokens of a text, tokens that a head reads
READERS: dict[str, dict[str, Any]] = {
    "keys": {},
    "min/max": {"score": "extremes"},
    "moments": {"score": "moments"},
    "oracle": {"score": "extremes", "stretch": 1},
    "keys, interval 4": {"interval": 4},
}
"""How pages are ranked. The oracle goes by the extremes of single keys: by the largest product."""


def decoder() -> Any:
    """The trained decoder, in float32."""
    return load(FOLDER, dtype=torch.float32, attn_implementation="gossamer").model


def texts(length: int, count: int, scattered: bool, seed: int = 1) -> list[Text]:
    """Texts of the same sentences again and again, as in the known test of pass keys, or of scattered words."""
    draw = random.Random(seed)
    return [write(draw, length, KEYS, scattered=scattered) for _ in range(count)]


@torch.no_grad()
def answered(model: Any, some: list[Text], sparsity: Sparsity, seed: int = 2) -> tuple[float, float]:
    """Ask every text, of one length, for some of its keys and for its animal: the shares of right answers.

    An answer is right if all of its words are; each word is the likeliest, after those that came before it.
    """
    draw, right = random.Random(seed), torch.zeros(2)
    questions = [text.questions(draw.sample(sorted(text.keys), ASKED)) for text in some]
    cache = SparseCache(model.config, sparsity, capacity=len(some[0].context) + 64)

    def read(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(2)

    read(torch.tensor([encode(text.context) for text in some]))
    for at, asked in enumerate(zip(*questions, strict=True)):
        wanted = torch.tensor([encode(question) for question in asked])
        read(wanted[:, :1])
        given = [read(wanted[:, 1:2])]
        while len(given) < wanted.shape[1] - 3:
            given.append(read(given[-1]))
        read(given[-1])
        read(torch.tensor([encode([STOP])] * len(some)))
        right[at // ASKED] += (torch.cat(given, 1) == wanted[:, 2:-1]).all(1).sum()
    keys, animals = (right / len(some) / torch.tensor([ASKED, 1])).tolist()
    return keys, animals


def rows(settings: Settings) -> Iterator[Row]:
    if not transformers_here():
        return
    model, count = decoder(), 2 if settings.quick else 12
    sizes = ((512, 256),) if settings.quick else SIZES
    for text, scattered in (("sentences", False), ("scattered words", True)):
        dense: dict[int, tuple[float, float]] = {}
        for length, budget in sizes:
            some = texts(length, count, scattered)
            if length not in dense:
                dense[length] = answered(model, some, Sparsity())
            found = {name: answered(model, some, Sparsity(token_budget=budget, **how)) for name, how in READERS.items()}
            found["dense"] = dense[length]
            for at, (question, asked) in enumerate((("pass keys", ASKED * count), ("most frequent animal", count))):
                yield {"length": length, "budget": budget, "text": text, "question": question, "asked": asked,
                       **{name: shares[at] for name, shares in found.items()}}  # fmt: skip


COLUMNS = (
    ("context", value("length", ",")), ("budget", value("budget", ",")), ("text", value("text")),
    ("question", value("question")), ("asked", value("asked")),
    *((name, value(name, ".0%")) for name in ("dense", *READERS)),
)  # fmt: skip
NOTE = "Shares of right answers; nothing is timed."

SECTION = Section(rows, Table(COLUMNS, NOTE), on_gpu=False)

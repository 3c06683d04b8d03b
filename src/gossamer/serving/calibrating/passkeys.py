"""Made questions about long texts: pass keys hidden in ordinary text, and asked for at the end.

    made = passkeys(tokenizer)
    sample = made.sample(4096, keys=10, seed=3)
    sample.prompt, sample.answer

What a model answers is right or wrong without doubt, the length is exact, and where each key lies is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NAMES = (
    "Lisbon Cairo Oslo Lima Kyoto Accra Quito Delhi Perth Minsk Havana Riga Dakar Boston Tunis Zagreb Hanoi Bern "
    "Austin Kyiv Manila Turin Leeds Fez Porto Seoul Bogota Ghent Malmo Nairobi Dallas Cork"
)
_WORDS = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)
_FIRST = "\nThe pass key of"
_BETWEEN = " is:"
_END = ".\n"
_ASK = "\n\nHere are the pass keys again, in the order of the text."
MOST_KEYS = len(_NAMES.split())


@dataclass(frozen=True, eq=False)
class Sample:
    """A prompt and what a right answer to it is.

    Attributes:
        prompt: tokens. answer: the tokens that follow if all is found.
        starts: for each key, the place in the prompt of the line that tells it, ascending.
        values: for each key, its tokens.
    """

    prompt: list[int]
    answer: list[int]
    starts: list[int]
    values: list[list[int]]

    @property
    def depths(self) -> list[float]:
        """For each key, which share of the prompt lies before it."""
        return [start / len(self.prompt) for start in self.starts]

    def labelled(self) -> tuple[Tensor, Tensor]:
        """int64[tokens] of prompt and answer, and bool[tokens], True for the answer."""
        tokens = torch.tensor(self.prompt + self.answer, device="cpu")
        return tokens, torch.arange(tokens.numel(), device="cpu") >= len(self.prompt)


@dataclass(frozen=True, eq=False)
class Passkeys:
    """Makes samples; `passkeys` makes it.

    Attributes:
        text: int64[tokens], what the keys are hidden in. words: how many a key has.
        begin: what a prompt begins with. names: for each place, the line that tells its key, up to the key.
        vocabulary: for each word, its tokens. end: the end of a line. ask: the question.
    """

    text: Tensor
    words: int
    begin: list[int]
    names: list[list[int]]
    vocabulary: list[list[int]]
    end: list[int]
    ask: list[int]

    def sample(
        self, length: int, keys: int, seed: int, *, depths: Sequence[float] | None = None, asked: int | None = None
    ) -> Sample:
        """The sample of a seed.

        Args:
            length: tokens of the prompt, exactly. keys: how many are hidden.
            depths: for each key, which share of the text is before it, ascending; None: one key anywhere in each of as
                many equal parts of the text.
            asked: the key that the prompt asks for, whose words are the answer; None: all, and the answer is all lines.

        Raises:
            ValueError: naming the argument; the length is too short for the keys, or the text for the length.
        """
        _check_count("keys", keys, 1, MOST_KEYS)
        if asked is not None:
            _check_count("asked", asked, 0, keys - 1)
        generator = torch.Generator().manual_seed(seed)
        names = torch.randperm(MOST_KEYS, generator=generator, device="cpu")[:keys].tolist()
        chosen = torch.randint(len(self.vocabulary), (keys, self.words), generator=generator, device="cpu").tolist()
        values = [[token for word in row for token in self.vocabulary[word]] for row in chosen]
        lines = [self.names[name] + value + self.end for name, value in zip(names, values, strict=True)]
        ask = self.ask if asked is None else self.ask + self.names[names[asked]]
        rest = len(self.begin) + sum(map(len, lines)) + len(ask)
        _check_count(f"length, for {keys} keys of {self.words} words,", length, rest + keys, None)
        filler = length - rest
        if filler > self.text.numel():
            raise ValueError(
                f"text must have at least {filler} tokens for prompts of {length}, got {self.text.numel()} tokens"
            )
        first = int(torch.randint(self.text.numel() - filler + 1, (), generator=generator, device="cpu"))
        if depths is None:
            places = (
                torch.arange(keys, device="cpu")
                + torch.rand(keys, generator=generator, dtype=torch.float64, device="cpu")
            ) / keys
        else:
            places = _checked(depths, keys)
        prompt, starts, before = list(self.begin), [], 0
        for line, place in zip(lines, (places * filler).long().tolist(), strict=True):
            prompt += self.text[first + before : first + place].tolist()
            starts.append(len(prompt))
            prompt += line
            before = place
        prompt += self.text[first + before : first + filler].tolist() + ask
        answer = [token for line in lines for token in line] if asked is None else values[asked]
        return Sample(prompt, answer, starts, values)


def passkeys(
    tokenizer: Any = None, text: str | None = None, *, vocabulary: int | None = None, words: int = 8
) -> Passkeys:
    """What makes samples for a model.

    Args:
        tokenizer: of transformers. None: `vocabulary`, the number of tokens, must be given, and text and keys are
            random tokens.
        text: ordinary text; None: Python's own documentation of its language, which every Python has.
        words: how many words a key has.

    Raises:
        ValueError: naming the argument, its value and what was expected.

    >>> made = passkeys(vocabulary=1000)
    >>> sample = made.sample(512, keys=3, seed=0, asked=1)
    >>> len(sample.prompt), sample.answer == sample.values[1]
    (512, True)
    """
    _check_count("words", words, 1, None)
    if tokenizer is None:
        if text is not None:
            raise ValueError("text needs a tokenizer, got none")
        if vocabulary is None:
            raise ValueError("either tokenizer or vocabulary must be given, got neither")
        return _random(vocabulary, words)
    if vocabulary is not None:
        raise ValueError(f"vocabulary is for models without a tokenizer, got {vocabulary} with one")

    def tokens(said: str, before: str = "") -> list[int]:
        # Some tokenizers mark the start of what they get: words are taken from where they stand in a line.
        whole, head = (tokenizer.encode(each, add_special_tokens=False) for each in (before + said, before))
        return list(
            whole[len(head) :] if whole[: len(head)] == head else tokenizer.encode(said, add_special_tokens=False)
        )

    return Passkeys(
        text=torch.tensor(tokens(python_topics() if text is None else text), dtype=torch.int64, device="cpu"),
        words=words,
        begin=beginning(tokenizer),
        names=[tokens(f"{_FIRST} {name}{_BETWEEN}") for name in _NAMES.split()],
        vocabulary=[tokens(f" {word}", _BETWEEN) for word in _WORDS.split()],
        end=tokens(_END, "alpha"),
        ask=tokens(_ASK),
    )


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    said, bare = (list(tokenizer.encode("a", add_special_tokens=special)) for special in (True, False))
    return next((said[:at] for at in range(len(said)) if said[at : at + len(bare)] == bare), [])


def python_topics() -> str:
    """Python's documentation of its language, which every Python has."""
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def _random(vocabulary: int, words: int) -> Passkeys:
    """Random tokens for text, names and words."""
    least = MOST_KEYS + len(_WORDS.split()) + 16
    _check_count("vocabulary", vocabulary, least, None)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(vocabulary, generator=generator, device="cpu")[:least].tolist()
    marks, names, known = ids[:8], ids[16 : 16 + MOST_KEYS], ids[16 + MOST_KEYS :]
    return Passkeys(
        text=torch.randint(vocabulary, (1 << 20,), generator=generator, device="cpu"), words=words, begin=[],
        names=[[*marks[:3], name, marks[3]] for name in names], vocabulary=[[word] for word in known],
        end=marks[4:6], ask=marks[6:8],
    )  # fmt: skip


def _check_count(name: str, value: int, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {expected}, got {value!r}")


def _checked(depths: Sequence[float], keys: int) -> Tensor:
    places = torch.tensor(list(depths), dtype=torch.float64, device="cpu")
    if places.numel() != keys or not bool(((places >= 0) & (places <= 1)).all()) or bool((places.diff() < 0).any()):
        raise ValueError(f"depths must be {keys} ascending numbers from 0 to 1, got {list(depths)}")
    return places

"""A small language of pass keys: texts that hide some among words, and questions about them.

    the grass is green ...    a text: the same sentences again and again, or words at random
    key bravo 47 19 05 .      hidden anywhere in it; no number comes twice
    ask bravo 47 19 05 .      one question, with its answer
    ask most owl .            another: which of four animals, strewn among the words, comes most often

The first can be answered from one page. The second cannot: every animal of the text counts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUMBERS = 3  # of a key
END, KEY, ASK, MOST, STOP = "<end>", "key", "ask", "most", "."
ANIMALS = ("cat", "dog", "owl", "fox")
_NAMES = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
)
_WORDS = (
    "the a of to and in that it was he his as with for she had on at by which but from they her all would this there "
    "been one so were or an no who what when will more if out up into them some could him only then about time than "
    "other"
)
_SENTENCES = "the grass is green the sky is blue the sun is yellow here we go there and back again"
NAMES, WORDS, SENTENCES = _NAMES.split(), _WORDS.split(), _SENTENCES.split()
_PLAIN = dict.fromkeys([*SENTENCES, *WORDS])
VOCABULARY = (END, KEY, ASK, MOST, STOP, *NAMES, *(f"{number:02}" for number in range(100)), *ANIMALS, *_PLAIN)
TOKEN = {word: at for at, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Text:
    """A text and what may be asked of it, in words.

    Attributes:
        context: the text. keys: name -> its numbers, in the order of the text. most: the animal that comes most often.
    """

    context: list[str]
    keys: dict[str, list[str]]
    most: str

    def questions(self, names: list[str]) -> list[list[str]]:
        """Questions with their answers: for the names, and for the animal at last."""
        return [*([ASK, name, *self.keys[name], STOP] for name in names), [ASK, MOST, self.most, STOP]]


def write(
    draw: random.Random, length: int, keys: int, *, animals: float = 0.06, ahead: float = 1.5, scattered: bool = False
) -> Text:
    """A text of `length` words.

    Args:
        keys: how many it hides. animals: share of the other words that are animals. ahead: how many times as often as
            each other one the most frequent animal comes; by one at least. scattered: words at random, not sentences.

    >>> text = write(random.Random(0), 60, 2, animals=0.3)
    >>> len(text.context), len(text.keys), text.questions(list(text.keys))[2][:2]
    (60, 2, ['ask', 'most'])
    """
    plain = max(0, length - keys * (NUMBERS + 3))
    first, most = draw.randrange(len(SENTENCES)), draw.choice(ANIMALS)
    words = [SENTENCES[at % len(SENTENCES)] for at in range(first, first + plain)]
    if scattered:
        words = draw.choices(WORDS, k=plain)
    least = max(1, round(animals * plain / (3 + ahead)))
    counts = {animal: max(least + 1, round(ahead * least)) if animal == most else least for animal in ANIMALS}
    if keys > min(len(NAMES), 100 // NUMBERS) or sum(counts.values()) > plain:
        raise ValueError(f"length={length} leaves {plain} words beside keys={keys}, for {sum(counts.values())} animals")
    strewn = [animal for animal, count in counts.items() for _ in range(count)]
    draw.shuffle(strewn)
    for place, animal in zip(draw.sample(range(plain), len(strewn)), strewn, strict=True):
        words[place] = animal
    names, numbers = draw.sample(NAMES, keys), draw.sample(range(100), keys * NUMBERS)
    of = {name: [f"{n:02}" for n in numbers[at * NUMBERS : (at + 1) * NUMBERS]] for at, name in enumerate(names)}
    places = sorted(draw.choices(range(plain + 1), k=keys))
    context, begin = [], 0
    for name, place in zip(names, places, strict=True):
        context += [*words[begin:place], KEY, name, *of[name], STOP]
        begin = place
    return Text([*context, *words[begin:]], of, most)


def encode(words: list[str]) -> list[int]:
    return [TOKEN[word] for word in words]


def lesson(
    draw: random.Random, rows: int, length: int, keys: int, animals: float, ahead: float, *, stops: bool = False
) -> tuple[Tensor, Tensor]:
    """Texts to learn from: each is asked for all of its keys, in any order, and for its animal among them.

    Args:
        stops: the stop behind an answer is a part of it.

    Returns:
        int64[rows, tokens], and bool[rows, tokens], True for answers.
    """
    texts, labels = [], []
    for _ in range(rows):
        text = write(draw, length, keys, animals=animals, ahead=ahead, scattered=draw.random() < 0.5)
        questions = text.questions(list(text.keys))
        draw.shuffle(questions)
        asked = [word for question in questions for word in question]
        answers = [2 <= at < len(question) - (not stops) for question in questions for at in range(len(question))]
        texts.append(encode(text.context + asked))
        labels.append([False] * length + answers)
    return torch.tensor(texts), torch.tensor(labels)


def tokenizer() -> Any:
    """Of transformers: a token for each word, made of the vocabulary alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(TOKEN, unk_token=END))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)

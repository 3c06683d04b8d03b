"""A decoder that was trained to find pass keys finds them in a sixteenth of its context, the best pages.

Which animal comes most often in a text cannot be seen in a few of its pages: that must be lost, or the budget would
not be one. `gossamer bench attention --only passkeys` has how much is lost, and by which ranking.
"""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("transformers")

import gossamer as gs
from gossamer.bench.attention.passkey_model import FOLDER, Stage, answers, begin, train
from gossamer.bench.attention.passkey_task import ANIMALS, NUMBERS, encode, lesson, tokenizer, write
from gossamer.bench.attention.passkeys import KEYS, READERS, answered, decoder, texts
from gossamer.serving.sparsity import Sparsity

ORACLE = Sparsity(token_budget=256, **READERS["oracle"])
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.mark.parametrize(("length", "scattered"), [(1_024, True), (4_096, False)])
def test_keys_are_found_as_by_dense_attention_and_animals_are_not(model, length, scattered):
    some = texts(length, 6, scattered)
    keys, animals = answered(model, some, Sparsity())
    assert keys >= 0.85  # 23 of 24 here; another instruction set rounds otherwise
    fewer, guessed = answered(model, some, ORACLE)
    assert abs(fewer - keys) <= 1 / 24  # one key of all that were asked for
    if length == 4_096:
        assert guessed <= animals - 0.25


def test_texts_are_answered_by_the_engine():
    """From words to words, with the question in the prompt; pages are chosen for what follows the first number."""
    llm = gs.serving.LLM(FOLDER, sparsity=ORACLE, dtype="float32")
    text = write(random.Random(5), 2_048, KEYS)
    names = list(text.keys)[::5]
    prompts = [" ".join([*text.context, "ask", name]) for name in names]
    assert llm.encode(prompts[0]) == encode([*text.context, "ask", names[0]]) == tokenizer()(prompts[0])["input_ids"]
    found = llm.generate(prompts, gs.serving.Sampling(max_tokens=NUMBERS))
    assert [each.text.split() for each in found] == [text.keys[name] for name in names]
    assert llm.tally.sparse_steps > 0


def test_a_text_holds_what_is_asked():
    for seed in range(50):
        draw = random.Random(seed)
        text = write(draw, draw.randint(150, 600), draw.randint(1, 16), scattered=bool(seed % 2))
        counts = {animal: text.context.count(animal) for animal in ANIMALS}
        assert all(counts[text.most] > count for animal, count in counts.items() if animal != text.most)
        for _, name, *numbers, _ in text.questions(list(text.keys))[:-1]:
            at = text.context.index(name)
            assert text.context[at - 1 : at + 5] == ["key", name, *numbers, "."] and text.context.count(name) == 1
            assert [text.context.count(number) for number in numbers] == [1, 1, 1]
    with pytest.raises(ValueError, match="length=30 leaves 0 words beside keys=16, for 5 animals"):
        write(random.Random(0), 30, 16)


@pytest.mark.slow
def test_training_learns_to_find():
    torch.manual_seed(0)
    model = begin()
    train(model, (Stage(120, 48, 20, 2, 0.3, 3.0),))
    logits, wanted = answers(model, *lesson(random.Random(9), 64, 20, 2, 0.3, 3.0))
    assert (logits.argmax(1) == wanted).float().mean() > 0.6

"""Pass keys in texts: exact lengths, the same for a seed, each key where it is said to be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level

from gossamer.serving.calibrating.passkeys import Passkeys, passkeys

TEXT = "the cat sat on the mat, didn't it? 'twas never so.\n" * 400
RANDOM = passkeys(vocabulary=500)


def check(made: Passkeys, length: int, keys: int, seed: int, asked: int | None) -> None:
    sample = made.sample(length, keys, seed, asked=asked)
    again = made.sample(length, keys, seed, asked=asked)
    assert (sample.prompt, sample.answer, sample.starts) == (again.prompt, again.answer, again.starts)
    assert len(sample.prompt) == length and len(sample.starts) == keys == len(sample.values)
    assert sample.starts == sorted(sample.starts) and all(0 <= depth < 1 for depth in sample.depths)
    lines = []
    for start, value in zip(sample.starts, sample.values, strict=True):
        told = [(name, name + value + made.end) for name in made.names]
        lines.append(next(each for each in told if sample.prompt[start : start + len(each[1])] == each[1]))
    if asked is None:
        assert sample.answer == [token for _, line in lines for token in line]
        assert sample.prompt[-len(made.ask) :] == made.ask
    else:
        assert sample.answer == sample.values[asked]
        assert sample.prompt[-len(lines[asked][0]) :] == lines[asked][0]
    tokens, labels = sample.labelled()
    assert tokens[labels].tolist() == sample.answer and tokens[~labels].tolist() == sample.prompt


@settings(max_examples=25, deadline=None)
@given(st.integers(700, 3000), st.integers(1, 32), st.integers(0, 2**40), st.data())
def test_samples(length, keys, seed, data):
    check(RANDOM, length, keys, seed, data.draw(st.none() | st.integers(0, keys - 1)))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bare", "suffixed"}))  # they know too few letters
def test_samples_of_tokenizers(kind):
    made = passkeys(KINDS[kind](), TEXT)
    check(made, 1500, 3, 5, None)
    check(made, 1500, 3, 5, 2)


def test_a_prompt_reads_as_text():
    tokenizer = byte_level()
    made = passkeys(tokenizer, TEXT, words=2)
    sample = made.sample(1000, 2, 4, depths=[0.0, 1.0], asked=1)
    said, line = tokenizer.decode(sample.prompt), tokenizer.decode(sample.prompt[sample.starts[1] :])
    assert said.startswith("\nThe pass key of ") and said.count("The pass key of") == 3 and "the cat" in said
    assert line.startswith(said[said.rindex("\nThe pass key") :] + tokenizer.decode(sample.answer) + ".\n")
    assert sample.starts[0] == 0
    assert made.sample(1000, 2, 5).prompt != made.sample(1000, 2, 4).prompt


def test_python_brings_text_enough_for_long_prompts():
    check(passkeys(byte_level()), 100_000, 10, 0, None)


@pytest.mark.parametrize("call, match", [
    (lambda: passkeys(), "either tokenizer or vocabulary"),
    (lambda: passkeys(byte_level(), vocabulary=9), "without a tokenizer, got 9"),
    (lambda: passkeys(text="a", vocabulary=900), "text needs a tokenizer"),
    (lambda: passkeys(vocabulary=20), "vocabulary must be an integer of at least"),
    (lambda: passkeys(vocabulary=900, words=0), "words must be"),
    (lambda: RANDOM.sample(900, 0, 0), "keys must be an integer from 1 to 32, got 0"),
    (lambda: RANDOM.sample(900, True, 0), "keys must be"),
    (lambda: RANDOM.sample(900, 3, 0, asked=3), "asked must be an integer from 0 to 2, got 3"),
    (lambda: RANDOM.sample(10, 3, 0), "length, for 3 keys of 8 words, must be an integer of at least"),
    (lambda: RANDOM.sample(1 << 21, 3, 0), "text must have at least"),
    (lambda: RANDOM.sample(900, 2, 0, depths=[0.5]), "depths must be 2 ascending"),
    (lambda: RANDOM.sample(900, 2, 0, depths=[0.5, 0.4]), "depths must be 2 ascending"),
    (lambda: RANDOM.sample(900, 2, 0, depths=[0.5, float("nan")]), "depths must be 2 ascending"),
])  # fmt: skip
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_shortest_prompt_is_as_said():
    with pytest.raises(ValueError) as error:
        RANDOM.sample(10, 3, 0)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    check(RANDOM, least, 3, 0, None)
    with pytest.raises(ValueError):
        RANDOM.sample(least - 1, 3, 0)

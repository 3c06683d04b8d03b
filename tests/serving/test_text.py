"""Text as tokens come: the pieces, joined, are what the tokenizer decodes, cut at the first stop string."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import small_tokenizers as small
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.serving.text import CONTEXT, Stops, TextStream

pytest.importorskip("transformers")


@cache
def tokenizer_of(kind: str) -> Any:
    return small.KINDS[kind]()


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The text before the first stop string, letter by letter: the slow way to say which one is first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def pieces_of(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.add(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize("kind", small.KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_pieces_are_the_text_of_any_tokens(kind, data):
    tokenizer = tokenizer_of(kind)
    # Two more than there are: a model's table may be longer than the tokenizer's.
    beyond = 0 if kind == "in Python" else 2
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1 + beyond), max_size=30))
    tokens *= data.draw(st.sampled_from([1, 3]))  # the context slides
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    stops = tuple(data.draw(st.lists(parts_of(text), max_size=3)))
    stream = TextStream(tokenizer, stops)
    pieces = pieces_of(stream, tokens)
    assert ("".join(pieces), stream.stopped) == cut(text, stops)


def parts_of(text: str) -> st.SearchStrategy[str]:
    """Strings that are in the text, or nearly."""
    other = st.text("aтn' .é", min_size=1, max_size=3)
    if not text:
        return other
    at = st.integers(0, len(text) - 1)
    part = st.builds(lambda start, size: text[start : start + size], at, st.integers(1, 8))
    return st.one_of(part, st.builds(str.__add__, part, other), other)


@settings(max_examples=60)
@given(text=st.text(st.sampled_from("aé日🎉👩\u200d \n'tn"), max_size=40), data=st.data())
def test_a_text_comes_back_at_every_cut(text, data):
    """Byte tokens and merged ones of the same text give the same pieces, joined, and the same stop."""
    tokenizer = tokenizer_of("byte level")
    stops = tuple(data.draw(st.lists(parts_of(text), max_size=3)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text.encode())), max_size=6)) | {0, len(text.encode())})
    marks = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    letters = "".join(word for word, _ in marks)
    bytewise = [tokenizer.convert_tokens_to_ids(letter) for letter in letters]
    merged = [
        token
        for start, end in itertools.pairwise(cuts)
        for token in tokenizer.backend_tokenizer.model.tokenize(letters[start:end])
    ]
    for tokens in (bytewise, [token.id for token in merged]):
        stream = TextStream(tokenizer, stops)
        assert "".join(pieces_of(stream, tokens)) == cut(text, stops)[0]
        assert stream.stopped == cut(text, stops)[1]


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), st.text("abc", max_size=20))
def test_text_is_held_only_while_it_may_become_a_stop_string(stops, text):
    stage = Stops(tuple(stops))
    given_out = ""
    for end in range(1, len(text) + 1):
        given_out += stage.add(text[end - 1])
        if stage.found:
            break
        held = text[len(given_out) : end]
        # What is held begins a stop string, and nothing longer that ends here does.
        begun = [at for at in range(end) if any(stop.startswith(text[at:end]) for stop in stops)]
        assert held == (text[begun[0] : end] if begun else "")
    assert (given_out + stage.finish(), stage.found) == cut(text, tuple(stops))


def test_letters_come_when_they_are_whole_and_not_later():
    tokenizer = tokenizer_of("byte level")
    letters = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("aé🎉\u0085b")
    tokens = [tokenizer.convert_tokens_to_ids(letter) for word, _ in letters for letter in word]
    assert pieces_of(TextStream(tokenizer), tokens) == ["a", "", "é", "", "", "", "🎉", "", "\u0085", "b", ""]
    assert pieces_of(TextStream(tokenizer), tokens[:5]) == ["a", "", "é", "", "", "\ufffd"]


def test_tokens_of_bytes_are_given_with_the_next_other_token():
    tokenizer = tokenizer_of("byte fallback")
    tokens = tokenizer.convert_tokens_to_ids(["▁the", "<0xC3>", "<0xA9>", "</s>", "<0xC3>", "<0xA9>", "▁", "▁the"])
    assert pieces_of(TextStream(tokenizer), tokens) == ["the", "", "", "", "", "", "éé ", " the", ""]
    wrong = [*tokens[:3], *tokenizer.convert_tokens_to_ids(["<0xFF>"])]
    assert pieces_of(TextStream(tokenizer), wrong) == ["the", "", "", "", "\ufffd" * 3]


def test_spaces_are_held_only_while_they_may_be_taken_out():
    tokenizer = tokenizer_of("word pieces, cleaned")
    tokens = tokenizer.convert_tokens_to_ids(["the", "cat", "n't", "cat", "n", "'", "t", "cat", "."])
    assert pieces_of(TextStream(tokenizer), tokens) == ["the", " cat", "", "n't cat", "", "", "", "n't cat", ".", ""]


def test_the_next_token_costs_the_same_however_long_the_text_is():
    """Counted in tokens that are decoded, for each kind of token: whole, unfinished, skipped."""
    tokenizer = tokenizer_of("byte level")
    decoded = []

    class Counting:
        def decode(self, token_ids, **options):
            decoded.append(len(token_ids))
            return tokenizer.decode(token_ids, **options)

        def convert_ids_to_tokens(self, token):
            return tokenizer.convert_ids_to_tokens(token)

    for token in tokenizer.convert_tokens_to_ids(["a", "Ã", "<|end|>"]):
        stream = TextStream(Counting(), stop="ab")
        for _ in range(100):
            stream.add(token)
        assert max(decoded) <= 2 * CONTEXT + 1
        assert sum(decoded) <= 100 * (2 * CONTEXT + 1)
        decoded.clear()


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("abc", "b"), "xabc", ("xa", "b")),  # complete first, though it begins later
        (("bc", "abc"), "xabc", ("x", "abc")),  # the longest of those that end together
        (("abc", "ab"), "xabc", ("x", "ab")),  # one begins with the other
        (("aab",), "aaab", ("a", "aab")),  # its own beginning comes twice
        (("aa", "ab"), "b a", ("b a", None)),  # never complete
        ("\n\n", "a\n b\n\nc", ("a\n b", "\n\n")),
        (("é",), "caf\u00e9", ("caf", "é")),
    ],
)
def test_which_stop_string_is_the_first(stops, text, expected):
    tokenizer = tokenizer_of("byte level")
    stream = TextStream(tokenizer, stops)
    assert ("".join(pieces_of(stream, tokenizer.encode(text))), stream.stopped) == expected


def test_after_a_stop_string_and_after_the_end():
    tokenizer = tokenizer_of("byte level")
    stream = TextStream(tokenizer, "END")
    for token in tokenizer.encode("so END"):
        stream.add(token)
    assert stream.stopped == "END"
    assert stream.add(tokenizer.encode("x")[0]) == "" and stream.finish() == "" and stream.stopped == "END"
    with pytest.raises(RuntimeError, match="token 5 came after finish"):
        stream.add(5)
    other = TextStream(tokenizer, "ab")
    assert other.add(tokenizer.encode("a")[0]) == "" and other.finish() == "a" and other.finish() == ""


def test_wrong_arguments_are_named():
    tokenizer = tokenizer_of("byte level")
    for stop, error, said in (
        ("", ValueError, r"stop\[0\] must have at least one letter"),
        (("a", ""), ValueError, r"stop\[1\] must have at least one letter"),
        (("a", 3), TypeError, r"stop\[1\] must be a string, got 3"),
        (3, TypeError, "stop must be a string or a sequence of strings, got 3"),
    ):
        with pytest.raises(error, match=said):
            TextStream(tokenizer, stop)
    with pytest.raises(TypeError, match="got str without decode"):
        TextStream("tokenizer")
    stream = TextStream(tokenizer)
    for token, error in ((-1, ValueError), (True, TypeError), (1.0, TypeError), ("a", TypeError)):
        with pytest.raises(error, match=f"token must be .*, got {token!r}"):
            stream.add(token)


def test_text_that_changes_after_it_was_given_is_an_error():
    class Reversing:
        def decode(self, token_ids, **options):
            return "".join(map(chr, reversed(token_ids)))

        def convert_ids_to_tokens(self, token):
            return chr(token)

    stream = TextStream(Reversing())
    stream.add(ord("a"))
    with pytest.raises(RuntimeError, match=r"Reversing decodes \[97, 98\] to 'ba'"):
        stream.add(ord("b"))

"""The text of tokens that come one by one: whole letters, spaces as the tokenizer cleans them, cut at a stop string.

Three stages, each of which holds back what a later token may still change, and no more. May import nothing of gossamer.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable
from typing import Any, Protocol

# The tokens that are decoded again with each new one. What a decoder does to a token depends on the ones before it in
# two ways: the first token of all loses its space, and a letter may have up to three tokens before its last.
CONTEXT = 8
UNFINISHED = "\ufffd"
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
# All that transformers' clean_up_tokenization looks for begins with a space and goes on with these.
CLEANED = " 'ntmsver"


class Tokenizer(Protocol):
    """What is asked of a tokenizer: any of transformers' answers it."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool | None = None
    ) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...


def stop_strings(stop: str | Iterable[str]) -> tuple[str, ...]:
    """The stop strings as a tuple: one string is one stop string.

    Raises:
        TypeError: `stop` is neither a string nor some of them.
        ValueError: a stop string is empty.

    >>> stop_strings("END"), stop_strings(["###", "Q:"])
    (('END',), ('###', 'Q:'))
    """
    if isinstance(stop, bytes) or not isinstance(stop, Iterable):
        raise TypeError(f"stop must be a string or a sequence of strings, got {stop!r}")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for at, string in enumerate(strings):
        if not isinstance(string, str):
            raise TypeError(f"stop[{at}] must be a string, got {string!r}")
        if not string:
            raise ValueError(f"stop[{at}] must have at least one letter, got {string!r}")
    return strings


class TextStream:
    """The text of one request, piece by piece.

    The pieces that `add` and `finish` return, joined, are `tokenizer.decode(tokens, skip_special_tokens=True)` of all
    tokens that were added, cut before the first stop string: the one that is complete first, and of those that end with
    the same letter the longest. How the text is cut into tokens makes no difference. Held back are

    - the bytes of a letter that is not whole. Tokens that stand for single bytes ("<0xE2>") are held until another kind
      of token comes, because one wrong byte changes the letters of all bytes beside it.
    - text with which a stop string begins, as long as it may go on.
    - where the tokenizer cleans spaces (`clean_up_tokenization_spaces`), a space that may still be taken out.

    A token takes the time of decoding a few tokens, however long the text is.

    Args:
        tokenizer: any tokenizer of transformers.
        stop: a string or several, each of at least one letter. Only text of tokens that were added can be one: what the
            prompt says does not count.

    Raises:
        TypeError: no tokenizer, or stop strings that are none.
        ValueError: an empty stop string.

    Example:
        >>> class Letters:                       # stands for a tokenizer: token 65 is "A"
        ...     def decode(self, token_ids, **options):
        ...         return "".join(map(chr, token_ids))
        ...     def convert_ids_to_tokens(self, token):
        ...         return chr(token)
        >>> stream = TextStream(Letters(), stop="END")
        >>> [stream.add(ord(letter)) for letter in "ONE END"]
        ['O', 'N', '', 'E ', '', '', '']
        >>> stream.stopped, stream.finish()
        ('END', '')
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Iterable[str] = ()) -> None:
        for name in ("decode", "convert_ids_to_tokens"):
            if not callable(getattr(tokenizer, name, None)):
                raise TypeError(f"tokenizer must be one of transformers, got {type(tokenizer).__name__} without {name}")
        self._letters = Letters(tokenizer)
        self._spaces = Spaces(tokenizer) if cleans(tokenizer) else None
        self._stops = Stops(stop_strings(stop))
        self._finished = False

    @property
    def stopped(self) -> str | None:
        """The stop string that was found; None as long as none was."""
        return self._stops.found

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; "" where there is none, and after a stop string.

        Raises:
            TypeError, ValueError: `token` is no integer, or negative.
            RuntimeError: after `finish`, or where the tokenizer changes text that it has given for the tokens before.
        """
        if self._finished:
            raise RuntimeError(f"token {token!r} came after finish(): a stream has one text")
        number = None if isinstance(token, bool) else getattr(token, "__index__", None)
        if number is None:
            raise TypeError(f"token must be an integer, got {token!r}")
        if (token := operator.index(token)) < 0:
            raise ValueError(f"token must be at least 0, got {token}")
        if self.stopped is not None:
            return ""
        text = self._letters.add(token)
        return self._stops.add(self._spaces.add(text) if self._spaces else text)

    def finish(self) -> str:
        """What was held back; no token comes after it. A second call has nothing to give: ""."""
        if self._finished or self.stopped is not None:
            self._finished = True
            return ""
        self._finished = True
        text = self._letters.finish()
        if self._spaces:
            text = self._spaces.add(text) + self._spaces.finish()
        return self._stops.add(text) + self._stops.finish()


class Letters:
    """The text of tokens, as far as its letters are whole.

    Decodes the last tokens, once without and once with the new one: what the second text has more is new. A token that
    decodes to nothing wherever it stands is left out, so that the last tokens are always some that have text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._text = ""  # of the window
        self._held = 0  # letters at its end that were not given out
        self._bytes: list[int] = []  # tokens of single bytes, since the last other token
        self._silent: dict[int, bool] = {}

    def add(self, token: int) -> str:
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is not None and BYTE.fullmatch(name):
            self._bytes.append(token)
            return ""
        if self._is_silent(token, name):
            return ""
        fresh = self._grow([*self._bytes, token])
        self._bytes = []
        # An unfinished letter decodes to one such sign, at the end; all before it is as it will stay.
        self._held = int(fresh.endswith(UNFINISHED))
        if len(self._window) > 2 * CONTEXT:
            self._window = self._window[-CONTEXT:]
            self._text = self._decode(self._window)
        return fresh[: len(fresh) - self._held]

    def finish(self) -> str:
        return self._grow(self._bytes)

    def _grow(self, tokens: list[int]) -> str:
        """The text that was not given out, with that of more tokens."""
        given = self._text[: len(self._text) - self._held]
        self._window = [*self._window, *tokens]
        self._text = self._decode(self._window)
        if not self._text.startswith(given):
            raise RuntimeError(
                f"{type(self._tokenizer).__name__} decodes {self._window} to {self._text!r}, and all but the last "
                f"{len(tokens)} to {given!r}: text that was given out would change"
            )
        return self._text[len(given) :]

    def _decode(self, tokens: list[int], skip: bool = True) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def _is_silent(self, token: int, name: str | None) -> bool:
        """Whether the token is skipped, or none of the tokenizer's. A lone space that is stripped is neither."""
        if token not in self._silent:
            self._silent[token] = not self._decode([token]) and (not name or self._decode([token], skip=False) != "")
        return self._silent[token]


class Spaces:
    """Text without the spaces that the tokenizer takes out before punctuation and short forms."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._clean = tokenizer.clean_up_tokenization  # type: ignore[attr-defined]
        self._held = ""

    def add(self, text: str) -> str:
        text = self._held + text
        # The last letter that nothing looked for goes through: text before and after it is cleaned by itself.
        end = len(text.rstrip(CLEANED))
        space = text.find(" ", end)
        certain = len(text) if space < 0 else space
        self._held = text[certain:]
        return self._clean(text[:certain])

    def finish(self) -> str:
        return self._clean(self._held)


def cleans(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer takes out spaces after it has decoded: asked of itself, for it depends on much."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    cleaned = []

    def clean(text: str) -> str:
        cleaned.append(text)
        return text

    asked: Any = copy.copy(tokenizer)
    asked.clean_up_tokenization = clean
    asked.decode([0], skip_special_tokens=True)
    return bool(cleaned)


class Stops:
    """Text up to the first stop string; its beginnings are held back while they may go on."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.found = min(found)
            self._held = ""
            return text[:at]
        certain = len(text) - self._begun(text)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """How many letters at the end are the beginning of a stop string."""
        for letters in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-letters:]) for stop in self._stops):
                return letters
        return 0

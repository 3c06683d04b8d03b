"""What the endpoints of one server have in common."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gossamer.server.errors import ApiError, invalid
from gossamer.server.grammar import Grammar
from gossamer.server.loop import EngineLoop
from gossamer.server.metrics import Metrics
from gossamer.serving.llm import LLM
from gossamer.serving.text import BYTE, UNFINISHED

_SPACE = "\u2581"  # as SentencePiece marks it


def _letters_of_bytes() -> dict[str, int]:
    """The byte that each letter stands for in the tokens of byte-level tokenizers: printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _letters_of_bytes()


class State:
    """A model, its engine's thread, and what is counted.

    Args:
        llm: the model. names: those by which clients may ask for it; the first is its own.
        queue_size, unread, seconds: see `EngineLoop`.
    """

    def __init__(
        self, llm: LLM, names: Sequence[str], *, queue_size: int = 64, unread: int = 4096, seconds: float | None = None
    ) -> None:
        self.llm, self.names = llm, list(names)
        self.metrics = Metrics(self.names[0])
        self.loop = EngineLoop(llm, queue_size=queue_size, unread=unread, seconds=seconds, ended=self.metrics.ended)
        self.metrics.watch(self.loop)
        config = llm.engine.model.config
        self.fingerprint = f"gs_{hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest()[:12]}"
        self.encoding = threading.Lock()
        """Held while a tokenizer encodes: some change themselves for a moment, and requests are encoded in threads."""
        self._grammar: Grammar | None = None

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its text together, at most."""
        return self.llm.engine.max_length

    def check_model(self, name: str | None) -> None:
        """Refuse another model than this.

        Raises:
            ApiError: 404.
        """
        if name is not None and name not in self.names:
            raise ApiError(
                404, f"the model {name!r:.80} does not exist here; expected {' or '.join(map(repr, self.names))}",
                param="model", code="model_not_found",
            )  # fmt: skip

    def encode(self, prompt: str | Sequence[int], param: str, *, special: bool = True) -> list[int]:
        """Tokens of a text, with those that the tokenizer puts before it if `special`; or tokens that the model knows.

        Raises:
            ApiError: 400.
        """
        try:
            with self.encoding:
                if isinstance(prompt, str) and not special and self.llm.tokenizer is not None:
                    tokens = list(self.llm.tokenizer(prompt, add_special_tokens=False)["input_ids"])
                else:
                    tokens = self.llm.encode(prompt)
        except (TypeError, ValueError) as error:
            raise invalid(str(error), param) from None
        unknown = [token for token in tokens if not 0 <= token < self.llm.engine.vocabulary]
        if unknown:
            raise invalid(f"{param} has the token {unknown[0]}, expected 0 to {self.llm.engine.vocabulary - 1}", param)
        return tokens

    def spell(self, token: int) -> tuple[str, bytes]:
        """The text of one token, and its bytes: a token may be a part of a letter only."""
        if self.llm.tokenizer is None:
            return "", b""
        text = str(self.llm.tokenizer.decode([token]))
        name = str(self.llm.tokenizer.convert_ids_to_tokens(token))
        if UNFINISHED in text:
            if BYTE.fullmatch(name):
                return text, bytes([int(name[3:-1], 16)])
            if all(letter in _BYTES for letter in name):
                return text, bytes(_BYTES[letter] for letter in name)
        if name.startswith(_SPACE) and not text.startswith(" "):
            text = " " + text  # a decoder takes the space of the first token of a text away
        return text, text.encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        if self.llm.tokenizer is None:
            return ""
        return str(self.llm.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def constraint(self, schema: dict[str, Any], param: str) -> Callable[[], Any]:
        """What makes a text follow a schema, a new one for each text.

        Raises:
            ApiError: 400, the schema cannot be followed, or there is no tokenizer.
        """
        if self.llm.tokenizer is None:
            raise invalid("the model has no tokenizer, which schemas need", param)
        with self.encoding:
            if self._grammar is None:
                self._grammar = Grammar(self.llm.tokenizer, self.llm.engine.vocabulary, sorted(self.llm.engine.end))
        grammar, compiled = self._grammar, self._grammar.compiled(schema, param)
        return lambda: grammar.follow(compiled)

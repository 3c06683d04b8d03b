"""What the endpoints of one server have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from gossamer.server.errors import ApiError, invalid
from gossamer.server.grammar import Grammar
from gossamer.server.loop import EngineLoop
from gossamer.server.metrics import Metrics
from gossamer.serving.llm import LLM


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
        self._grammar: Grammar | None = None
        self._compiled: dict[str, str] = {}

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

    def encode(self, prompt: str | Sequence[int], param: str) -> list[int]:
        """Tokens of a text, or tokens that the model knows.

        Raises:
            ApiError: 400.
        """
        try:
            tokens = self.llm.encode(prompt)
        except (TypeError, ValueError) as error:
            raise invalid(str(error), param) from None
        unknown = [token for token in tokens if not 0 <= token < self.llm.engine.vocabulary]
        if unknown:
            raise invalid(f"{param} has the token {unknown[0]}, expected 0 to {self.llm.engine.vocabulary - 1}", param)
        return tokens

    def decode(self, token: int) -> str:
        """The text of one token."""
        return "" if self.llm.tokenizer is None else str(self.llm.tokenizer.decode([token]))

    def decode_all(self, tokens: Sequence[int]) -> str:
        return (
            "" if self.llm.tokenizer is None else str(self.llm.tokenizer.decode(list(tokens), skip_special_tokens=True))
        )

    def constraint(self, schema: dict[str, Any], param: str) -> Callable[[], Any]:
        """What makes a text follow a schema, a new one for each text.

        Raises:
            ApiError: 400, the schema cannot be followed, or there is no tokenizer.
        """
        if self.llm.tokenizer is None:
            raise invalid("the model has no tokenizer, which schemas need", param)
        if self._grammar is None:
            self._grammar = Grammar(self.llm.tokenizer, self.llm.engine.vocabulary, sorted(self.llm.engine.end))
        grammar, compiled = self._grammar, self._grammar.compiled(schema, param)
        return lambda: grammar.follow(compiled)

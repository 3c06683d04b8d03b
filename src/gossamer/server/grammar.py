"""Texts that must follow a JSON schema: which tokens may come next, by the library llguidance."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from gossamer.extras import needed
from gossamer.server.errors import ApiError, invalid

_SPACES = r"\n?\x20{0,8}"
"""Between the signs of JSON. Some models, once they have begun, write nothing but spaces."""


class Grammar:
    """Grammars for one tokenizer, which is read once.

    Args:
        tokenizer: of transformers. vocabulary: how many logits there are. end: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end: list[int]) -> None:
        self._library: Any = needed("llguidance", "tools and response_format need llguidance", "server")
        hf: Any = needed("llguidance.hf", "tools and response_format need llguidance", "server")
        self.vocabulary = vocabulary
        self._tokens = hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=end or None)

    def compiled(self, schema: dict[str, Any], param: str) -> str:
        """The grammar of a schema.

        Raises:
            ApiError: 400, the schema says what cannot be held.
        """
        schema = {"x-guidance": {"whitespace_pattern": _SPACES}} | schema
        try:
            text: str = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            wrong = self._library.LLMatcher.validate_grammar(text, self._tokens)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise invalid(f"the schema cannot be followed: {wrong[:300]}", param, "invalid_schema")
        return text

    def follow(self, grammar: str) -> Following:
        """What keeps one text to a grammar."""
        return Following(self._library.LLMatcher(self._tokens, grammar), self.vocabulary)


class Following:
    """Keeps one text to its grammar: a constraint of the engine.

    A grammar that fails ends its own text and no other: from then on every token may come, the next one is the last,
    and `failed` says why.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = torch.zeros(-(-vocabulary // 32), dtype=torch.int32, device="cpu")
        self.failed: ApiError | None = None

    def narrow(self, logits: Tensor) -> Tensor:
        """Logits [vocabulary] with -inf for tokens that may not come."""
        try:
            self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        except Exception as error:  # the library's own, and Rust's
            return self._fail(logits, str(error))
        places = torch.arange(32, dtype=torch.int32, device="cpu")
        allowed = ((self._bits[:, None] >> places) & 1).flatten()[: logits.numel()].bool()
        if self._matcher.is_error() or not allowed.any():
            return self._fail(logits, self._matcher.get_error() or "no token can follow")
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> bool:
        """A token was chosen; whether the text is complete with it and must end."""
        if self.failed is not None:
            return True
        if not self._matcher.consume_token(token):
            self._fail(None, self._matcher.get_error() or f"the token {token} does not fit")
            return True
        return bool(self._matcher.is_stopped())

    def _fail(self, logits: Any, why: str) -> Any:
        self.failed = ApiError(500, f"the schema could not be followed: {why:.300}", code="schema_error")
        return logits


def any_object() -> dict[str, Any]:
    """The schema of response_format json_object."""
    return {"type": "object"}

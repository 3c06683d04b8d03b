"""Texts that must follow a JSON schema: which tokens may come next, by the library llguidance."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from gossamer.extras import needed
from gossamer.server.errors import invalid


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
    """Keeps one text to its grammar: a constraint of the engine."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = torch.zeros(-(-vocabulary // 32), dtype=torch.int32)

    def narrow(self, logits: Tensor) -> Tensor:
        """Logits [vocabulary] with -inf for tokens that may not come."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.numel() * 4)
        places = torch.arange(32, dtype=torch.int32)
        allowed = ((self._bits[:, None] >> places) & 1).flatten()[: logits.numel()].bool()
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> bool:
        """A token was chosen; whether the text is complete with it and must end."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def any_object() -> dict[str, Any]:
    """The schema of response_format json_object."""
    return {"type": "object"}

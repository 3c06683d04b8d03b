"""The call of one module of a transformers stack: its states, and the same call for some of the tokens.

A layer is called with states [batch, tokens, width] and keywords that go along with them: position embeddings and
position ids by token, a mask, a cache. `Call` says which is which and refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CACHES = ("past_key_values", "layer_past", "past_key_value")
_BY_TOKEN = ("position_embeddings", "position_ids")
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of a module whose states come first.

    Attributes:
        states: [batch, tokens, width].
        keywords: the others.
    """

    states: Tensor
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], keywords: dict[str, Any], name: str) -> Call:
        """Sort the arguments of a call.

        Raises:
            ValueError: a tensor that is not known to go along with tokens.
        """
        keywords = dict(keywords)
        states = args[0] if args else keywords.pop("hidden_states", None)
        if not isinstance(states, Tensor) or states.dim() != 3:
            raise ValueError(f"{name} was called without states [batch, tokens, width]; such a layer cannot be routed")
        for key, value in [*enumerate(args[1:], 1), *keywords.items()]:
            known = key in (*_BY_TOKEN, *CACHES, "attention_mask")
            if not known and value is not None and not isinstance(value, _PLAIN):
                raise ValueError(
                    f"{name} was called with {key}={type(value).__name__}, which routing cannot divide by tokens; "
                    f"expected {', '.join((*_BY_TOKEN, 'attention_mask', CACHES[0]))} or plain values"
                )
        return cls(states, args[1:], keywords)

    @property
    def mask(self) -> Tensor | None:
        return self.keywords.get("attention_mask")

    def run(self, forward: Callable[..., Any], states: Tensor | None = None, **changed: Any) -> Any:
        """Call `forward`, with some arguments changed."""
        cache = changed.pop("cache", None)
        keywords = {**self.keywords, **changed}
        if cache is not None:
            keywords.update({name: cache for name in CACHES if name in keywords})
        return forward(self.states if states is None else states, *self.args, **keywords)

    def by_token(self, take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What goes along with tokens, each tensor [batch or 1, tokens, ...] through `take` [batch, tokens, ...]."""
        batch = self.states.shape[0]

        def some(value: Any) -> Any:
            if isinstance(value, Tensor):
                return take(value.expand(batch, *value.shape[1:]))
            return value if value is None else tuple(some(each) for each in value)

        return {name: some(self.keywords[name]) for name in _BY_TOKEN if name in self.keywords}


def first(out: Any) -> Tensor:
    """The states that a module returned, alone or before other things."""
    states = out if isinstance(out, Tensor) else out[0]
    assert isinstance(states, Tensor)
    return states


def with_first(out: Any, states: Tensor) -> Any:
    """The same kind of result with other states."""
    return (states, *out[1:]) if isinstance(out, tuple) else states

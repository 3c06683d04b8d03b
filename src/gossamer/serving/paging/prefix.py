"""Texts that begin as one before them did: their first tokens' keys are there already.

    prefixes = Prefixes(store)
    prefixes.keep(request, tokens)             # a text has ended, or its prompt is read: its pages stay
    found = prefixes.take(prompt)              # a request that holds what the prompt shares with one of them, or None

What is kept gives its pages back when others need them, the one that was used longest ago first. Windows move on and
their pages are given back, so a text whose heads stream can be used up to its end only, not to a place in its middle:
that is why prompts are kept when they have been read, and not only texts when they have ended.

Keys are derived from the weights: when those change, what is kept is given back, and what was begun before is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossamer.serving.paging.pages import OutOfPages
from gossamer.serving.paging.store import Request, Store

MOST = 64
"""Texts that are kept."""


@dataclass(frozen=True, eq=False)
class Known:
    """A text, and the request that holds its keys."""

    tokens: NDArray[np.int64]
    request: Request


class Prefixes:
    """Texts whose pages stay for others.

    Args:
        store: where they lie. most: texts that are kept; 0: none.
        weights: says in two calls the same if keys that were computed in between are still right.

    Attributes:
        hits, queries: tokens of prompts that were there, and tokens that were asked for.
    """

    def __init__(self, store: Store, most: int = MOST, weights: Callable[[], Hashable] = lambda: None) -> None:
        self.store, self.most, self._weights = store, most, weights
        self._seen = weights() if most else None
        self.known: list[Known] = []  # those that were used longest ago first
        self.hits = self.queries = 0

    def keep(self, request: Request, tokens: Sequence[int]) -> None:
        """Take a request over, of whose tokens all have their keys; or close it, where it is no use to others."""
        self._follow()
        page = self.store.sparsity.page
        text = np.asarray(tokens[: request.length], dtype=np.int64)
        # What policies remember of a text, and slots that hold some of its tokens, belong to that text.
        if self.most == 0 or len(text) < page or request.outdated or request.kept or request.memory:
            self.store.close(request)
            return
        request.chosen.clear()
        alike = [each for each in self.known if each.request.token_budget == request.token_budget]
        for each in [each for each in alike if self._replaces(text, each)]:
            self.known.remove(each)
            self.store.close(each.request)
        self.known.append(Known(text, request))
        while len(self.known) > self.most:
            self.evict()

    def _replaces(self, text: NDArray[np.int64], known: Known) -> bool:
        """Whether whoever could use the known text can use this one: it goes on with it, and can be cut anywhere."""
        same = len(known.tokens) == len(text) or self._cuts
        return same and len(known.tokens) <= len(text) and bool((known.tokens == text[: len(known.tokens)]).all())

    @property
    def _cuts(self) -> bool:
        return all(view.window is None for view in self.store.pages)

    def take(self, prompt: Sequence[int], token_budget: int | None = None) -> Request | None:
        """A new request with the longest beginning of a prompt that is known; the last token is always left to read.

        Texts of another budget are passed over: what they decoded is what that budget made of it.
        """
        self._follow()
        self.queries += len(prompt)
        asked = np.asarray(prompt[:-1], dtype=np.int64)
        best: Known | None = None
        length = 0
        for known in [each for each in self.known if each.request.token_budget == token_budget]:
            shared = self._usable(known, _common(known.tokens, asked))
            if shared > length:
                best, length = known, shared
        if best is None:
            return None
        self.known.remove(best)
        self.known.append(best)
        request = self.store.fork(best.request)
        try:
            self.store.crop(request, request.length - length)
        except (ValueError, OutOfPages):
            self.store.close(request)
            return None
        request.chosen.clear()
        self.hits += length
        return request

    def _follow(self) -> None:
        """Forget what other weights have made."""
        if self.most == 0 or (now := self._weights()) == self._seen:
            return
        self._seen = now
        self.clear()
        for each in self.store.requests:
            each.outdated = True

    def _usable(self, known: Known, shared: int) -> int:
        """Tokens of a known text that a prompt which shares so many can have."""
        if shared < len(known.tokens) and not self._cuts:
            return 0
        sparsity = self.store.sparsity
        return shared - shared % sparsity.page if sparsity.prefill is not None else shared

    def evict(self) -> bool:
        """Give back the pages of the text that was used longest ago; whether there was one."""
        if not self.known:
            return False
        self.store.close(self.known.pop(0).request)
        return True

    def clear(self) -> None:
        """Give all pages back."""
        while self.evict():
            pass


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many tokens two texts share at their beginning.

    >>> _common(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).nonzero()[0]
    return int(differ[0]) if len(differ) else length

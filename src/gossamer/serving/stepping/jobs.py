"""A prompt, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from gossamer.serving.paging.requests import Request
from gossamer.serving.sampling import Choice, Sampler, Sampling

Finished = Literal["stop", "length", "abort"]


class Constraint(Protocol):
    """Keeps a text to a form, such as a JSON schema."""

    def narrow(self, logits: Tensor) -> Tensor:
        """Logits [vocabulary] with -inf for tokens that may not come next."""

    def take(self, token: int) -> bool:
        """A token was chosen; whether the text is complete with it."""


@dataclass(eq=False)
class Job:
    """One prompt and what came of it.

    Attributes:
        prompt: its tokens. tokens: those that were made. choices: the same with their log-probabilities.
        number: how many requests its engine had before it.
        finished: None while it runs; "stop": an end token, or a stop string that `Engine.stop` was told of; "length":
            max_tokens; "abort".
        restarts: how often it gave its pages to others.
        cached: tokens of the prompt whose keys were there when it began.
        constraint: what keeps its text to a form; None: nothing.
        token_budget: see `Engine.add`.
        read: tokens of which `LLM.advance` has made text. told: whether its text was given out to the end.
    """

    prompt: list[int]
    sampling: Sampling
    sampler: Sampler
    number: int = 0
    tokens: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    finished: Finished | None = None
    restarts: int = 0
    cached: int = 0
    constraint: Constraint | None = None
    token_budget: int | None = None
    pages: Request | None = None
    read: int = 0
    told: bool = False

    @property
    def done(self) -> int:
        """Tokens whose keys are in pages."""
        return 0 if self.pages is None else self.pages.length

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def held(self) -> Request:
        """Its pages, which it has while it runs."""
        assert self.pages is not None
        return self.pages

    def ahead(self, most: int) -> list[int]:
        """The next tokens for the model: of the prompt up to `most`, else one."""
        if self.done < len(self.prompt):
            return self.prompt[self.done : self.done + most]
        return [self.tokens[self.done - len(self.prompt)]]

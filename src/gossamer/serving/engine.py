"""Many requests at once: each step takes one token further whoever decodes, and a chunk of the prompts that wait.

    engine = Engine(model)
    job = engine.add([1, 17, 4], Sampling(max_tokens=8))
    while engine.busy:
        for job in engine.step():
            job.tokens, job.finished

Requests are served in the order in which they came. When pages run out the newest gives its own back and starts again
later: its prompt as a prompt, its tokens one by one, as they were made, so that it goes on with the same numbers.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gossamer.serving import hooks
from gossamer.serving.capacity import pages_for
from gossamer.serving.geometry import Geometry
from gossamer.serving.packed import PackedCache
from gossamer.serving.pages import OutOfPages
from gossamer.serving.prefix import Prefixes
from gossamer.serving.requests import Request
from gossamer.serving.sampling import Choice, Sampler, Sampling, choose
from gossamer.serving.sparsity import Sparsity, View
from gossamer.serving.store import Store
from gossamer.serving.tally import Tally

logger = logging.getLogger(__name__)

Finished = Literal["stop", "length", "abort"]
ROPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Turns by position alone. Others look at the longest text of a batch, which is then not a matter of one request."""


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
        finished: None while it runs; "stop": an end token, or a stop string that `Engine.stop` was told of; "length":
            max_tokens; "abort".
        restarts: how often it gave its pages to others.
        cached: tokens of the prompt whose keys were there when it began.
        constraint: what keeps its text to a form; None: nothing.
        token_budget: see `Engine.add`.
    """

    prompt: list[int]
    sampling: Sampling
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    finished: Finished | None = None
    restarts: int = 0
    cached: int = 0
    constraint: Constraint | None = None
    token_budget: int | None = None
    pages: Request | None = None

    @property
    def done(self) -> int:
        """Tokens whose keys are in pages."""
        return 0 if self.pages is None else self.pages.length

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    def ahead(self, most: int) -> list[int]:
        """The next tokens for the model: of the prompt up to `most`, else one."""
        if self.done < len(self.prompt):
            return self.prompt[self.done : self.done + most]
        return [self.tokens[self.done - len(self.prompt)]]


class Engine:
    """Generates with a decoder of transformers.

    Args:
        model: a ...ForCausalLM; its attention is "gossamer" during a step, and its own again after it.
        sparsity: what is skipped; None: nothing.
        memory: bytes for keys and values; None: half of what is free.
        max_length: tokens of prompt and output together, at most; None: what the model was made for, or what the memory
            holds.
        max_requests: how many are worked on at once. chunk: tokens of prompts in a step, at most.
        prefixes: texts whose pages stay for others that begin alike; 0: none.
        end: tokens that end a text; None: those of the model's generation config.

    Raises:
        ValueError: the model, or a number, is not supported. Nothing has run then.
    """

    def __init__(
        self, model: Any, *, sparsity: Sparsity | None = None, memory: int | None = None, max_length: int | None = None,
        max_requests: int = 8, chunk: int = 512, prefixes: int = 0,
        end: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        given = {"max_requests": max_requests, "chunk": chunk}
        given |= {name: value for name, value in (("memory", memory), ("max_length", max_length)) if value is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if sparsity is not None and sparsity.prefill is not None and chunk < sparsity.page:
            raise ValueError(f"chunk must be at least a page of {sparsity.page} tokens with prefill=, got {chunk}")
        _check_model(model)
        self.model, self.max_requests, self.chunk = model, max_requests, chunk
        self.sparsity = sparsity or Sparsity()
        geometry = Geometry.of_model(model)
        if max_length is not None and geometry.longest is not None and max_length > geometry.longest:
            raise ValueError(f"max_length must be at most the model's {geometry.longest} tokens, got {max_length}")
        parts = self.sparsity.parts(geometry)
        weight = model.get_input_embeddings().weight
        device, stored = weight.device, self.sparsity.stored_for(weight.dtype)
        pages, self.max_length = pages_for(
            geometry, self.sparsity, stored, parts, memory=memory, longest=max_length, requests=max_requests,
            chunk=chunk, device=device, skips=isinstance(getattr(model, "geometry", None), Geometry),
        )  # fmt: skip
        if max_length is None and geometry.longest is not None and self.max_length < geometry.longest:
            logger.warning("texts have at most %d tokens, of the model's %d: memory", self.max_length, geometry.longest)
        self._attending = hooks.Attending(model)
        self.store = Store(geometry, self.sparsity, stored, parts, pages, device)
        self.prefixes = Prefixes(self.store, prefixes)
        self.cache = PackedCache(geometry, self.sparsity, self.store)
        self.end = frozenset(_end_tokens(model) if end is None else end)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []

    @property
    def tally(self) -> Tally:
        """What attention read of what it could have read."""
        return self.cache.tally

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config(decoder=True).vocab_size

    def add(self, prompt: Sequence[int], sampling: Sampling, *, token_budget: int | None = None) -> Job:
        """A request, which the next steps work on.

        Args:
            token_budget: for this request in place of `Sparsity.token_budget`, which must be set if it is not 0: all.

        Raises:
            ValueError: the prompt is empty, has tokens that the model does not know, or is too long with its output;
                or the budget is none that the engine can hold.
        """
        self.check_budget(token_budget)
        prompt = list(prompt)
        if not prompt:
            raise ValueError("prompt must have at least one token, got none")
        longest = len(prompt) + sampling.max_tokens
        if longest > self.max_length:
            raise ValueError(
                f"prompt has {len(prompt)} tokens and max_tokens is {sampling.max_tokens}: {longest} together, "
                f"expected at most {self.max_length}"
            )
        job = Job(prompt, sampling, Sampler(sampling, prompt, self.vocabulary), token_budget=token_budget)
        self.waiting.append(job)
        return job

    def check_budget(self, token_budget: int | None) -> None:
        """Refuse a budget of one request that cannot be held.

        Raises:
            ValueError: none that `Sparsity` takes, or pages have no summaries because the engine has no budget.
        """
        if not token_budget:
            return
        replace(self.sparsity, token_budget=token_budget)
        if self.sparsity.token_budget is None:
            raise ValueError(f"token_budget needs an engine with a budget of its own, got {token_budget} for a request")

    def stop(self, job: Job, reason: Finished = "abort") -> None:
        """End a request and give its pages back; no matter if it has ended."""
        if job.finished is None:
            self._release(job)
            if job in self.waiting:
                self.waiting.remove(job)
            job.finished = reason

    @torch.no_grad()
    def step(self) -> list[Job]:
        """One pass through the model.

        Returns:
            The requests that have a new token.

        An error, or Ctrl-C, in the middle leaves pages without their keys: who had a part in the pass starts again.
        """
        plan = self._plan()
        if not plan:
            return []
        try:
            return self._pass(plan)
        except BaseException:
            for job in reversed([job for job in self.running if any(job is each for each, _ in plan)]):
                self._restart(job)
            raise

    def _pass(self, plan: Sequence[tuple[Job, list[int]]]) -> list[Job]:
        """The model's next logits for the plan, and a token from each that a request waits for."""
        tokens = [token for _, ahead in plan for token in ahead]
        counts = [len(ahead) for _, ahead in plan]
        places = [at for job, ahead in plan for at in range(job.done, job.done + len(ahead))]
        decoding = sum(job.done >= len(job.prompt) for job, _ in plan)
        device = self.store.device
        step = self.store.extend([_pages(job) for job, _ in plan], counts, decoding)
        self.cache.begin(step)
        last = torch.tensor(counts).cumsum(0) - 1
        wanted = [at for at, (job, _) in enumerate(plan) if job.done == job.length]
        with self._attending():
            logits = self.model(
                input_ids=torch.tensor([tokens], device=device), position_ids=torch.tensor([places], device=device),
                past_key_values=self.cache, use_cache=True, logits_to_keep=last[wanted].to(device),
            ).logits[0]  # fmt: skip
        self.store.trim(step.requests)
        jobs = [plan[at][0] for at in wanted]
        for at, job in enumerate(jobs):
            if job.constraint is not None:
                logits[at] = job.constraint.narrow(logits[at])
        for job, choice in zip(jobs, choose(logits, [job.sampler for job in jobs]), strict=True):
            self._take(job, choice)
        return jobs

    def _take(self, job: Job, choice: Choice) -> None:
        if not job.tokens and self.prefixes.most:
            self.prefixes.keep(self.store.fork(_pages(job)), job.prompt)
        job.tokens.append(choice.token)
        job.choices.append(choice)
        whole = job.constraint is not None and job.constraint.take(choice.token)
        ends = choice.token in job.sampling.stop_token_ids or whole
        if ends or (choice.token in self.end and not job.sampling.ignore_eos):
            self.stop(job, "stop")
        elif len(job.tokens) == job.sampling.max_tokens:
            self.stop(job, "length")

    def _plan(self) -> list[tuple[Job, list[int]]]:
        """Who works on which tokens, for which there are pages: those that decode, then prompts up to the chunk."""
        while self.waiting and len(self.running) < self.max_requests and self._room_made(self.waiting[0]):
            job = self.waiting.popleft()
            job.pages = self._begun(job)
            self.running.append(job)
        while True:
            plan, left = [], self.chunk
            for job in sorted(self.running, key=lambda job: job.done < len(job.prompt)):
                ahead = job.ahead(left)
                if job.done < len(job.prompt):
                    if self.sparsity.prefill is not None and job.done + len(ahead) < len(job.prompt):
                        ahead = ahead[: len(ahead) - len(ahead) % self.sparsity.page]  # blocks begin with pages
                    left -= len(ahead)
                if ahead:
                    plan.append((job, ahead))
            while not self._fits(plan):
                if not self.prefixes.evict():
                    break
            else:
                return plan
            if len(self.running) == 1:
                raise OutOfPages(f"one request of {self.running[0].length} tokens has no room alone")
            self._restart(self.running[-1])

    def _begun(self, job: Job) -> Request:
        """Its pages: none yet, or those of a text that began alike."""
        found = None if job.tokens else self.prefixes.take(job.prompt, job.token_budget)
        job.cached = 0 if found is None else found.length
        pages = self.store.open() if found is None else found
        pages.token_budget = job.token_budget
        return pages

    def _room_made(self, job: Job) -> bool:
        """Whether a request has room, if need be that of texts which are kept for others."""
        while not self._has_room(job):
            if not self.prefixes.evict():
                return False
        return True

    def _has_room(self, job: Job) -> bool:
        """Whether all pages that a request has to have for its next token are free, and not wanted by those before it.

        Pages of windows are there for all; one request alone always has room.
        """
        dense = self.store.pages.get(View(None, 0))
        if dense is None or not self.running:
            return True
        page = self.sparsity.page
        wanted = sum(job.length // page + 1 - len(_pages(job).tables[View(None, 0)]) for job in self.running)
        return job.length // page + 1 + wanted <= dense.free

    def _restart(self, job: Job) -> None:
        """Give its pages back; it is the next to begin."""
        self._release(job, keep=False)
        job.restarts += 1
        self.waiting.appendleft(job)

    def _fits(self, plan: Sequence[tuple[Job, list[int]]]) -> bool:
        needed = [self.store.needed(_pages(job), len(ahead)) for job, ahead in plan]
        return all(sum(each[view] for each in needed) <= pages.free for view, pages in self.store.pages.items())

    def _release(self, job: Job, keep: bool = True) -> None:
        if job.pages is not None:
            if keep:
                self.prefixes.keep(job.pages, [*job.prompt, *job.tokens])
            else:
                self.store.close(job.pages)
            job.pages = None
            self.running.remove(job)


def _pages(job: Job) -> Request:
    assert job.pages is not None
    return job.pages


def _end_tokens(model: Any) -> list[int]:
    """The tokens that end a text, by the model's own settings."""
    configs = (getattr(model, "generation_config", None), model.config)
    for end in (getattr(config, "eos_token_id", None) for config in configs):
        if end is not None:
            return [end] if isinstance(end, int) else list(end)
    return []


def _check_model(model: Any) -> None:
    """Refuse what cannot run with the tokens of several requests in one row."""
    name = type(model).__name__
    taken = inspect.signature(model.forward).parameters
    for argument in ("position_ids", "past_key_values", "logits_to_keep"):
        if argument not in taken:
            raise ValueError(f"{name} does not take {argument}, expected a decoder of transformers that does")
    text = model.config.get_text_config(decoder=True)
    ropes = getattr(text, "rope_parameters", None) or {}
    every = [ropes, *(each for each in ropes.values() if isinstance(each, dict))]
    for rope in every:
        kind = rope.get("rope_type", "default")
        alike = kind == "longrope" and rope.get("short_factor") == rope.get("long_factor")
        if kind not in ROPES and not alike:
            raise ValueError(f"{name} has RoPE of type {kind!r}, expected one of {', '.join(ROPES)}")
    if model.training:
        raise ValueError(f"{name} is in training mode: call model.eval()")

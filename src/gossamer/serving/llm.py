"""`LLM`: texts in, texts out.

llm = gs.serving.LLM("smollm2", sparsity=gs.serving.Sparsity(token_budget=1024))
for each in llm.generate(["The capital of France is"], gs.serving.Sampling(max_tokens=8)):
    print(each.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed

from gossamer.ranks import Ranks
from gossamer.serving import hooks
from gossamer.serving.checkpoints.loading import Loaded, load
from gossamer.serving.checkpoints.models import meant
from gossamer.serving.engine import Engine
from gossamer.serving.sampling import Choice, Sampling
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.stepping.jobs import Finished, Job
from gossamer.serving.tally import Tally
from gossamer.serving.template import conversation
from gossamer.serving.text import TextStream

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """What came of a prompt.

    Attributes:
        text: without the stop string; "" for a model without a tokenizer. tokens: all that were made.
        finished: "stop", "length" or "abort".
        prompt_tokens: how many the prompt had.
        choices: the tokens with their log-probabilities, if those were asked for.
    """

    text: str
    tokens: list[int]
    finished: Finished
    prompt_tokens: int
    choices: list[Choice]


class LLM:
    """A language model that generates for many prompts at once, each of any length.

    Args:
        model: a name of `gossamer model`, `demo` included; a folder of Hugging Face's or with a .gguf, a .gguf file, or
            a model of transformers.
        sparsity: what attention skips; None: nothing.
        tokenizer: of transformers; None: the one that comes with the model.
        dtype, device: of the weights, as in `gossamer.serving.load`.
        memory, max_length, max_requests, chunk, prefixes, group: as in `gossamer.serving.Engine`. Of several ranks the
            first is asked, and closed at the end; the others `follow`.

    Raises:
        FileNotFoundError, ValueError, TypeError, ImportError: as `load` and `Engine` do, before anything runs. OSError:
            another rank could not load it.
    """

    def __init__(
        self, model: str | Path | Any, *, sparsity: Sparsity | None = None, tokenizer: Any = None,
        dtype: torch.dtype | str | None = None, device: torch.device | str | None = None, memory: int | None = None,
        max_length: int | None = None, max_requests: int = 8, chunk: int = 512, prefixes: int = 0,
        group: distributed.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        loaded = _loaded(model, group, dtype=dtype, device=device, attn_implementation=hooks.NAME)
        self.tokenizer = tokenizer if tokenizer is not None else loaded.tokenizer
        name = meant(model) if isinstance(model, str) else model
        self.engine = Engine(
            loaded.model, sparsity=(sparsity or Sparsity()).of(name), memory=memory, max_length=max_length,
            max_requests=max_requests, chunk=chunk, prefixes=prefixes, group=group,
        )  # fmt: skip

    @property
    def tally(self) -> Tally:
        """What attention read of what it could have read, since the model was made."""
        return self.engine.tally

    def follow(self) -> None:
        """On another rank than the first of a group: take part in what that one is asked, until it is closed.

        Raises:
            RankLost, RuntimeError: as `Engine.follow`.
        """
        self.engine.follow()

    def close(self) -> None:
        """On the first rank of a group: let the others go. Without a group there is nothing to do."""
        self.engine.close()

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts before it; tokens stay as they are.

        Raises:
            TypeError: neither text nor tokens. ValueError: there is no tokenizer.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("a text was given and the model has no tokenizer; give tokens, or tokenizer=")
            return list(self.tokenizer(prompt)["input_ids"])
        if not isinstance(prompt, Sequence) or any(
            isinstance(each, bool) or not isinstance(each, int) for each in prompt
        ):
            raise TypeError(f"prompt must be a text or a sequence of tokens, got {prompt!r:.60}")
        return list(cast(Sequence[int], prompt))

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation in the model's own template, up to where its answer begins.

        Raises:
            ValueError: the tokenizer has no template, or it fails or refuses them.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError("the model's tokenizer has no chat template; give a plain text")
        return conversation(self.tokenizer, messages)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Complete prompts; what came of each, in their order.

        Args:
            prompts: a text or a sequence of tokens, or several.
            sampling: for all, or one for each; None: greedy, 64 tokens.

        Raises:
            TypeError, ValueError: naming the prompt; nothing has run then.
        """
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = cast(Sequence[Prompt], [prompts])
        each = [sampling or Sampling()] * len(prompts) if not isinstance(sampling, Sequence) else list(sampling)
        if len(each) != len(prompts):
            raise ValueError(f"sampling has {len(each)} entries for {len(prompts)} prompts")
        jobs: list[Job] = []
        try:
            for at, (prompt, how) in enumerate(zip(prompts, each, strict=True)):
                jobs.append(self._add(prompt, how, at if len(prompts) > 1 else None))  # type: ignore[arg-type]
            streams = {id(job): self._stream(job) for job in jobs}
            texts = {id(job): "" for job in jobs}
            while not all(job.told for job in jobs):
                self._step(*jobs)
                for job in jobs:
                    texts[id(job)] += self.advance(job, streams[id(job)])
        finally:
            for job in jobs:
                self.engine.stop(job)
        return [self._completion(job, texts[id(job)]) for job in jobs]

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[str]:
        """Complete one prompt, piece by piece. Leaving the loop ends the request.

        Raises:
            TypeError, ValueError: as `generate`, at the first piece.
        """
        job = self.start(prompt, sampling or Sampling())
        try:
            yield from self.pieces(job)
        finally:
            self.engine.stop(job)

    def start(self, prompt: Prompt, sampling: Sampling) -> Job:
        """A request that `pieces` waits for."""
        return self._add(prompt, sampling, None)

    def pieces(self, job: Job, progress: Callable[[int], object] | None = None) -> Iterator[str]:
        """The text of a request as it becomes certain.

        Args:
            progress: called with the number of tokens that were read while the prompt is.
        """
        stream = self._stream(job)
        while not job.told:
            self._step(job)
            if progress is not None and len(job.tokens) <= 1:
                progress(job.done or len(job.prompt))
            if piece := self.advance(job, stream):
                yield piece

    def _step(self, *jobs: Job) -> None:
        """A pass, if one of them still runs: others, who ask the same engine, may have taken them to their end."""
        if any(job.finished is None for job in jobs):
            self.engine.step()

    def _add(self, prompt: Prompt, sampling: Sampling, at: int | None) -> Job:
        try:
            if sampling.stop and self.tokenizer is None:
                raise ValueError(f"stop is {sampling.stop} and the model has no tokenizer")
            return self.engine.add(self.encode(prompt), sampling)
        except (TypeError, ValueError) as error:
            if at is None:
                raise
            raise type(error)(f"prompts[{at}]: {error}") from None

    def _stream(self, job: Job) -> TextStream | None:
        return None if self.tokenizer is None else TextStream(self.tokenizer, job.sampling.stop)

    def advance(self, job: Job, stream: TextStream | None) -> str:
        """The text that its newest tokens make certain; a stop string in it ends the request."""
        text, ended = "", job.finished is not None  # in this order: another thread may be at work on its last token
        while job.read < len(job.tokens):
            token = job.tokens[job.read]
            job.read += 1
            if stream is None:
                continue
            ends = token in job.sampling.stop_token_ids or (token in self.engine.end and not job.sampling.ignore_eos)
            text += "" if ends else stream.add(token)  # a token that ends a text is no text
            if stream.stopped is not None:
                self.engine.stop(job)
                del job.tokens[job.read :], job.choices[job.read :]
                job.finished, job.told = "stop", True
                return text
        if ended and not job.told:
            job.told = True
            text += "" if stream is None else stream.finish()
        return text

    def _completion(self, job: Job, text: str) -> Completion:
        assert job.finished is not None
        choices = job.choices if job.sampling.logprobs is not None else []
        return Completion(text, job.tokens, job.finished, len(job.prompt), choices)


def _loaded(model: Any, group: distributed.ProcessGroup | None, **how: Any) -> Loaded:
    """A model in every rank of a group; what fails in one of them fails in all."""
    if group is None:
        return load(model, **how)
    made: list[Loaded] = []
    Ranks.of(group).together(lambda: made.append(load(model, **how)))
    return made[0]

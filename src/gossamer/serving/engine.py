"""Many requests at once: each step takes one token further whoever decodes, and a chunk of the prompts that wait.

    engine = Engine(model)
    job = engine.add([1, 17, 4], Sampling(max_tokens=8))
    while engine.busy:
        for job in engine.step():
            job.tokens, job.finished

Among the processes of a group, each of which holds a part of the model, rank 0 is asked; the others follow:

    engine = Engine(model, group=torch.distributed.group.WORLD)
    engine.follow() if torch.distributed.get_rank() else serve(engine)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed

from gossamer.serving import hooks
from gossamer.serving.geometry import Geometry
from gossamer.serving.packed import PackedCache
from gossamer.serving.paging.capacity import SHARE, Limits, free_memory, least, pages_for
from gossamer.serving.paging.pages import OutOfPages
from gossamer.serving.paging.prefix import Prefixes
from gossamer.serving.paging.store import Store
from gossamer.serving.sampling import Choice, Sampler, Sampling, choose
from gossamer.serving.sparsity import Sparsity
from gossamer.serving.stepping.division import share
from gossamer.serving.stepping.jobs import Finished, Job
from gossamer.serving.stepping.linears import few_rows
from gossamer.serving.stepping.scheduler import Plan, Scheduler
from gossamer.serving.stepping.team import Team
from gossamer.serving.stepping.turns import Turns
from gossamer.serving.tally import Tally
from gossamer.wrappers import is_sharded, unwrap

logger = logging.getLogger(__name__)

ROPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Turns by position alone. Others look at the longest text of a batch, which is then not a matter of one request."""


class Engine:
    """Generates with a decoder of transformers. Several threads may ask it; a step serves the requests of all.

    Args:
        model: a ...ForCausalLM; its attention is "gossamer" during a step, and its own again after it. Of one that is
            wrapped (compiled, by DDP) the model inside.
        sparsity: what is skipped; None: nothing.
        memory: bytes for keys and values; None: half of what is free.
        max_length: tokens of prompt and output together, at most; None: what the model was made for, or what the memory
            holds.
        max_requests: how many are worked on at once. chunk: tokens of prompts in a step, at most.
        prefixes: texts whose pages stay for others that begin alike; 0: none. They are forgotten when weights change,
            as version counters tell. Call `engine.prefixes.clear()` after what these do not see: writes through
            `.data`, by which PEFT merges adapters, and what is no weight, as an adapter that is switched off.
        end: tokens that end a text; None: those of the model's generation config.
        group: of torch.distributed, whose ranks divide the model; all of them make an engine with the same arguments.
            Each then has its own part of the weights and of the pages, of which `memory` is for one rank. None: this
            process has all.

    Attributes:
        parts: what the heads of each layer see, those of other ranks too.

    Raises:
        ValueError: the model, or a number, is not supported. Nothing has run then.
    """

    def __init__(
        self, model: Any, *, sparsity: Sparsity | None = None, memory: int | None = None, max_length: int | None = None,
        max_requests: int = 8, chunk: int = 512, prefixes: int = 0, end: Sequence[int] | None = None,
        group: distributed.ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        _check_numbers(max_requests=max_requests, chunk=chunk, memory=memory, max_length=max_length)
        self.sparsity = sparsity or Sparsity()
        if self.sparsity.prefill is not None and chunk < self.sparsity.page:
            raise ValueError(f"chunk must be at least a page of {self.sparsity.page} tokens with prefill=, got {chunk}")
        model = unwrap(model)
        _check_model(model)
        geometry = Geometry.of_model(model)
        if max_length is not None and geometry.longest is not None and max_length > geometry.longest:
            raise ValueError(f"max_length must be at most the model's {geometry.longest} tokens, got {max_length}")
        parts = self.parts = self.sparsity.parts(geometry)
        weight = model.get_input_embeddings().weight
        device, stored = weight.device, self.sparsity.stored_for(weight.dtype)
        skips = isinstance(getattr(model, "geometry", None), Geometry)
        self.team: Team | None = None
        if group is not None and distributed.get_world_size(group) > 1:
            self.team = Team(group)
            model, geometry, parts = share(model, geometry, parts, max_length, self.team.ranks)
            if memory is None and device.type == "cpu":
                memory = int(free_memory(device) * SHARE) // self.team.neighbours()

        def held() -> Limits:
            return pages_for(
                geometry, self.sparsity, stored, parts, memory=memory, longest=max_length, requests=max_requests,
                chunk=chunk, device=device, skips=skips,
            )  # fmt: skip

        pages, self.max_length = held() if self.team is None else least(self.team.every(held))
        if max_length is None and geometry.longest is not None and self.max_length < geometry.longest:
            logger.warning("texts have at most %d tokens, of the model's %d: memory", self.max_length, geometry.longest)
        self.model, self._turns = model, Turns()
        self._attending = hooks.Attending(model)
        self.store = Store(geometry, self.sparsity, stored, parts, pages, device)
        # Ranks must forget the same at the same step, so what each has divided for itself is taken as fixed.
        self.prefixes = Prefixes(self.store, prefixes, partial(_weights, model if self.team is None else None))
        self.scheduler = Scheduler(self.store, self.prefixes, max_requests=max_requests, chunk=chunk)
        self.waiting, self.running = self.scheduler.waiting, self.scheduler.running
        self.cache = PackedCache(geometry, self.sparsity, self.store)
        self.end = frozenset(_end_tokens(model) if end is None else end)

    @property
    def tally(self) -> Tally:
        """What attention read of what it could have read; on rank 0 of several that of all, which it asks."""
        if self.team is None or not self.team.first:
            return self.cache.tally
        with self._turns:
            self.team.tell("tally")
            self.team.send()
            return Tally.sum(self.team.every(lambda: self.cache.tally))

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

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
            RuntimeError: this rank follows another.
        """
        self._check_first()
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
        with self._turns:
            self._tell("add", prompt, sampling.max_tokens, token_budget)
            self.scheduler.add(job)
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
        with self._turns:
            if job.finished is None:
                self._tell("stop", job.number, reason)
                self.scheduler.end(job, reason)

    @torch.no_grad()
    def step(self) -> list[Job]:
        """One pass through the model.

        Returns:
            The requests that have a new token.

        An error, or Ctrl-C, in the middle leaves pages without their keys: who had a part in the pass starts again.
        Ranks of a group cannot go on then.

        Raises:
            OutOfPages: one request has no room alone. RankLost: of several ranks one has gone. RuntimeError: this rank
                follows another.
        """
        self._check_first()
        with self._turns:
            return self._stepped()

    def _stepped(self) -> list[Job]:
        with self.team.passing() if self.team is not None else nullcontext():
            if self.team is not None:
                self.team.tell("step")
                self.team.send()
            plan = self.scheduler.plan()
            jobs, logits = self._pass(plan)
        try:
            taken = self._decided(jobs, logits)
        except BaseException:
            self._tell("undo")
            self.scheduler.undo(plan)
            raise
        self._tell("take", [(choice.token, finished) for choice, finished in taken])
        for job, (choice, finished) in zip(jobs, taken, strict=True):
            job.choices.append(choice)
            self.scheduler.take(job, choice.token, finished)
        return jobs

    @torch.no_grad()
    def follow(self) -> None:
        """Another rank than the first: compute its part of every pass until the first one closes its engine.

        Raises:
            RankLost: another rank has gone. RuntimeError: there are no others, or this is the first.
        """
        team, scheduler = self.team, self.scheduler
        if team is None or team.first:
            raise RuntimeError("follow() is for the ranks of a group after the first, which is asked itself")
        plan: Plan = []
        jobs: list[Job] = []
        while True:
            for event in team.hear():
                match event:
                    case "add", prompt, most, budget:
                        sampling = Sampling(max_tokens=most)
                        scheduler.add(Job(prompt, sampling, Sampler(sampling, [], 1), token_budget=budget))
                    case "stop", number, reason:
                        scheduler.end(scheduler.numbered(number), reason)
                    case ("step",):
                        with suppress(OutOfPages), team.passing():  # the first has the same plan, and says so
                            plan = scheduler.plan()
                            jobs, _ = self._pass(plan)
                    case "take", taken:
                        for job, (token, finished) in zip(jobs, taken, strict=True):
                            scheduler.take(job, token, finished)
                    case ("undo",):
                        scheduler.undo(plan)
                    case ("tally",):
                        team.every(lambda: self.cache.tally)
                    case ("close",):
                        return

    def close(self) -> None:
        """Rank 0 of a group: the others need not follow any longer, and no more is computed. Else nothing."""
        with self._turns:
            if self.team is not None and self.team.first and self.team.lost is None:
                self.team.tell("close")
                self.team.send()
                self.team.lost = "the engine was closed"

    def _pass(self, plan: Plan) -> tuple[list[Job], Tensor]:
        """Those of the plan that wait for a token, and the model's logits for each; none on a rank that follows."""
        if not plan:
            return [], torch.empty(0, dtype=torch.float32, device="cpu")
        try:
            return self._computed(plan)
        except BaseException:
            self.scheduler.undo(plan)
            raise

    def _computed(self, plan: Plan) -> tuple[list[Job], Tensor]:
        tokens = [token for _, ahead in plan for token in ahead]
        counts = [len(ahead) for _, ahead in plan]
        places = [at for job, ahead in plan for at in range(job.done, job.done + len(ahead))]
        decoding = sum(job.done >= len(job.prompt) for job, _ in plan)
        device = self.store.device
        step = self.store.extend([job.held for job, _ in plan], counts, decoding)
        self.cache.begin(step)
        last = torch.tensor(counts, device="cpu").cumsum(0) - 1
        wanted = [at for at, (job, _) in enumerate(plan) if job.done == job.length]
        asked = wanted if self.team is None or self.team.first else []
        with self._attending(), few_rows(self.model):
            logits = self.model(
                input_ids=torch.tensor([tokens], device=device), position_ids=torch.tensor([places], device=device),
                past_key_values=self.cache, use_cache=True, logits_to_keep=last[asked].to(device),
            ).logits[0]  # fmt: skip
        self.store.trim(step.requests)
        return [plan[at][0] for at in wanted], logits

    def _decided(self, jobs: Sequence[Job], logits: Tensor) -> list[tuple[Choice, Finished | None]]:
        """The next token of each, and how its text ends with it."""
        for at, job in enumerate(jobs):
            if job.constraint is not None:
                logits[at] = job.constraint.narrow(logits[at])
        choices = choose(logits, [job.sampler for job in jobs]) if jobs else []
        return [(choice, self._ends(job, choice.token)) for job, choice in zip(jobs, choices, strict=True)]

    def _ends(self, job: Job, token: int) -> Finished | None:
        whole = job.constraint is not None and job.constraint.take(token)
        if whole or token in job.sampling.stop_token_ids or (token in self.end and not job.sampling.ignore_eos):
            return "stop"
        return "length" if len(job.tokens) + 1 == job.sampling.max_tokens else None

    def _tell(self, *event: Any) -> None:
        if self.team is not None:
            self.team.tell(*event)

    def _check_first(self) -> None:
        if self.team is not None and not self.team.first:
            raise RuntimeError(f"rank {self.team.ranks.rank} follows rank 0, which is asked: call follow() here")


def _weights(model: Any) -> tuple[tuple[int, Any], ...]:
    """Where the weights lie, and how often they were written; None has none.

    Tensors of inference mode count no writes: they are never what they were.
    """
    tensors = () if model is None else chain(model.parameters(), model.buffers())
    return tuple((x.data_ptr(), object() if x.is_inference() else x._version) for x in tensors)


def _check_numbers(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


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
    empty = next((key for key, x in model.named_parameters() if x.device.type == "meta"), None)
    if empty is not None:
        raise ValueError(f"{name} has no numbers in {empty}, which is on the meta device: load its weights first")
    if any(is_sharded(each) for each in model.modules()):
        raise ValueError(f"{name} is cut into shards by FSDP, expected whole weights; Engine(group=) divides a model")

"""Who works on which tokens in the next pass, and whose pages are whose.

Requests are served in the order in which they came. When pages run out the newest gives its own back and starts again
later: its prompt as a prompt, its tokens one by one, as they were made, so that it goes on with the same numbers.

All that is decided here follows from what was added, taken and ended, and in which order; nothing is computed. So two
schedulers that are told the same have the same plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gossamer.serving.paging.pages import OutOfPages
from gossamer.serving.paging.prefix import Prefixes
from gossamer.serving.paging.requests import Request
from gossamer.serving.paging.store import Store
from gossamer.serving.sparsity import View
from gossamer.serving.stepping.jobs import Finished, Job

Plan = list[tuple[Job, list[int]]]
"""Those that have a part in a pass, with their tokens; those that decode come first."""


class Scheduler:
    """Requests that wait and that run.

    Args:
        store: the pages. prefixes: texts that are kept for others.
        max_requests, chunk: see `Engine`.
    """

    def __init__(self, store: Store, prefixes: Prefixes, *, max_requests: int, chunk: int) -> None:
        self.store, self.prefixes = store, prefixes
        self.max_requests, self.chunk = max_requests, chunk
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._added = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, job: Job) -> None:
        """It comes after all others."""
        job.number, self._added = self._added, self._added + 1
        self.waiting.append(job)

    def numbered(self, number: int) -> Job:
        """One that waits or runs."""
        return next(job for job in (*self.running, *self.waiting) if job.number == number)

    def end(self, job: Job, reason: Finished) -> None:
        """Give its pages back, or keep them for others."""
        self._release(job)
        if job in self.waiting:
            self.waiting.remove(job)
        job.finished = reason

    def plan(self) -> Plan:
        """Who works on which tokens, for which there are pages: those that decode, then prompts up to the chunk.

        Raises:
            OutOfPages: the one request that runs has no room alone.
        """
        while self.waiting and len(self.running) < self.max_requests and self._room_made(self.waiting[0]):
            job = self.waiting.popleft()
            job.pages = self._begun(job)
            self.running.append(job)
        while True:
            plan, left, page = [], self.chunk, self.store.sparsity.page
            for job in sorted(self.running, key=lambda job: job.done < len(job.prompt)):
                ahead = job.ahead(left)
                if job.done < len(job.prompt):
                    if self.store.sparsity.prefill is not None and job.done + len(ahead) < len(job.prompt):
                        ahead = ahead[: len(ahead) - len(ahead) % page]  # blocks begin with pages
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

    def take(self, job: Job, token: int, finished: Finished | None) -> None:
        """Its next token, and whether the text ends with it."""
        if not job.tokens and self.prefixes.most:
            self.prefixes.keep(self.store.fork(job.held), job.prompt)
        job.tokens.append(token)
        if finished is not None:
            self.end(job, finished)

    def undo(self, plan: Plan) -> None:
        """A pass failed, and left pages without their keys: who had a part in it starts again."""
        for job in reversed([job for job in self.running if any(job is each for each, _ in plan)]):
            self._restart(job)

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
        page = self.store.sparsity.page
        wanted = sum(job.length // page + 1 - len(job.held.tables[View(None, 0)]) for job in self.running)
        return job.length // page + 1 + wanted <= dense.free

    def _restart(self, job: Job) -> None:
        """Give its pages back; it is the next to begin."""
        self._release(job, keep=False)
        job.restarts += 1
        self.waiting.appendleft(job)

    def _fits(self, plan: Sequence[tuple[Job, list[int]]]) -> bool:
        needed = [self.store.needed(job.held, len(ahead)) for job, ahead in plan]
        return all(sum(each[view] for each in needed) <= pages.free for view, pages in self.store.pages.items())

    def _release(self, job: Job, keep: bool = True) -> None:
        if job.pages is not None:
            if keep:
                self.prefixes.keep(job.pages, [*job.prompt, *job.tokens])
            else:
                self.store.close(job.pages)
            job.pages = None
            self.running.remove(job)

"""Who works in each pass, and the pages of each pool: the engine against a scheduler of a few lines in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from gossamer.serving import Engine, Sampling, Sparsity
from gossamer.serving import engine as module
from gossamer.serving.sparsity import View

transformers = pytest.importorskip("transformers")

PAGE, SINK, LOCAL, LONGEST = 32, 40, 50, 320
LAST = 40  # pass before which a text may come
DENSE, STREAMING = View(None, 0), View(LOCAL, SINK)


def held(length: int) -> dict[View, set[int]]:
    """The pages of a text of so many tokens that a token to come may see."""
    every = set(range(-(-length // PAGE)))
    return {DENSE: every, STREAMING: {at for at in every if at * PAGE < SINK or (at + 1) * PAGE > length + 1 - LOCAL}}


@dataclass
class Text:
    prompt: int
    wanted: int
    done: int = 0
    made: int = 0

    def ahead(self, most: int) -> int:
        return min(most, self.prompt - self.done) if self.done < self.prompt else 1


@dataclass
class Simulator:
    """Texts in the order in which they came; who finds no page for a pass has the newest give its own back."""

    counts: dict[View, int]
    chunk: int
    most: int
    waiting: list[Text] = field(default_factory=list)
    running: list[Text] = field(default_factory=list)

    def used(self, view: View) -> int:
        return sum(len(held(text.done)[view]) for text in self.running)

    def step(self) -> list[tuple[Text, int]]:
        while self.waiting and len(self.running) < self.most and self._has_room(self.waiting[0]):
            self.running.append(self.waiting.pop(0))
        while not self._fits(plan := self._plan()):
            assert len(self.running) > 1
            self.running[-1].done = 0
            self.waiting.insert(0, self.running.pop())
        for text, tokens in plan:
            text.done += tokens
            text.made += text.done == text.prompt + text.made
            if text.made == text.wanted:
                self.leave(text)
        return plan

    def leave(self, text: Text) -> None:
        self.waiting = [each for each in self.waiting if each is not text]
        self.running = [each for each in self.running if each is not text]

    def _has_room(self, text: Text) -> bool:
        """In the dense pool: for all its tokens and the next, and for the same of those before it."""
        texts = [text, *self.running]
        return not self.running or sum((each.prompt + each.made) // PAGE + 1 for each in texts) <= self.counts[DENSE]

    def _plan(self) -> list[tuple[Text, int]]:
        plan, left = [(text, 1) for text in self.running if text.done >= text.prompt], self.chunk
        for text in (text for text in self.running if text.done < text.prompt):
            if tokens := text.ahead(left):
                plan.append((text, tokens))
            left -= tokens
        return plan

    def _fits(self, plan: list[tuple[Text, int]]) -> bool:
        new = sum(-(-(text.done + tokens) // PAGE) - -(-text.done // PAGE) for text, tokens in plan)
        return all(self.used(view) + new <= most for view, most in self.counts.items())


class Nothing(transformers.LlamaForCausalLM):
    """A decoder of one layer, with a dense and a streaming head, that computes nothing: its tokens are all 0."""

    def forward(self, input_ids: Any, position_ids: Any, past_key_values: Any, use_cache: bool, logits_to_keep: Any):
        assert input_ids.shape == position_ids.shape
        return SimpleNamespace(logits=torch.zeros(1, len(logits_to_keep), 8))


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LONGEST,
    )  # fmt: skip
    return Nothing(config).eval()


@st.composite
def cases(draw: DrawFn) -> tuple[dict[View, int], int, int, list[tuple[int, int, int, int | None]]]:
    """Pages of both pools, from those of the longest text alone; chunk; texts at once; and what comes: before which
    pass, with how many tokens, and before which pass it is taken back."""
    chunk = draw(st.sampled_from([16, 50, 200]))
    least = {
        DENSE: LONGEST // PAGE,
        STREAMING: max(len(held(at)[STREAMING]) for at in range(LONGEST)) + chunk // PAGE + 2,
    }
    counts = {view: pages + draw(st.integers(0, 12)) for view, pages in least.items()}
    size = st.integers(1, 220) | st.sampled_from([PAGE, 2 * PAGE, 3 * PAGE - 1])
    text = st.tuples(st.integers(0, LAST), size, st.integers(1, 90), st.none() | st.integers(0, 120))
    return counts, chunk, draw(st.integers(1, 5)), draw(st.lists(text, min_size=2, max_size=9))


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_each_pass_is_the_simulators(model: Any, case: Any) -> None:
    counts, chunk, most, arrivals = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "pages_for", lambda *_, **__: (counts, LONGEST))
        sparsity = Sparsity(static=0.5, page=PAGE, sink=SINK, local=LOCAL, stretch=PAGE)
        engine = Engine(model, sparsity=sparsity, end=[], max_requests=most, chunk=chunk)
    jobs, texts, ends, simulator = [], [], [], Simulator(counts, chunk, most)
    passes, extend = [], engine.store.extend

    def watched(requests: Any, counts: Any, decoding: int) -> Any:
        numbers = [place([job.pages for job in jobs], each) for each in requests]
        passes.append(list(zip(numbers, counts, strict=True)))
        return extend(requests, counts, decoding)

    engine.store.extend = watched
    for now in count():
        for _, prompt, wanted, leaves in (each for each in arrivals if each[0] == now):
            jobs.append(engine.add([1] * prompt, Sampling(max_tokens=wanted)))
            texts.append(Text(prompt, wanted))
            simulator.waiting.append(texts[-1])
            before = [text for job, text in zip(jobs, texts, strict=True) if job.finished is None]
            most_passes = sum(-(-text.prompt // chunk) + text.wanted for text in before)
            ends.append((now + most_passes, None if leaves is None else now + leaves))
        for job, text, (_, leaves) in zip(jobs, texts, ends, strict=True):
            if leaves == now:
                engine.stop(job)
                simulator.leave(text)
        if engine.busy:
            engine.step()
            assert passes[-1] == [(place(texts, text), tokens) for text, tokens in simulator.step()]
        for view, pages in engine.store.pages.items():
            assert pages.count - pages.free == simulator.used(view) <= counts[view]
        numbers = [place(jobs, job) for job in (*engine.running, *engine.waiting)]
        assert numbers == sorted(numbers)  # who came first is first, also after a restart
        assert all(job.finished or now < last for job, (last, _) in zip(jobs, ends, strict=True)), "a text starves"
        if now >= LAST and not engine.busy:
            break
    assert [len(job.tokens) for job in jobs] == [text.made for text in texts]
    assert all(pages.free == pages.count for pages in engine.store.pages.values())


def place(every: list[Any], one: Any) -> int:
    return next(at for at, each in enumerate(every) if each is one)

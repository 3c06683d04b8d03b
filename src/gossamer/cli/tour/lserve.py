"""LServe on SmolLM2: questions about one long text of Python's library, answered together."""

from __future__ import annotations

import inspect
import math
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gossamer as gs
from gossamer.bench.attention.decoders import Decoder
from gossamer.bench.attention.forced import Text, Texts
from gossamer.bench.attention.steps import ON, PLENTY, STEPS, Steps, endless
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.cli.tour.decoder import decoder
from gossamer.measure import clock
from gossamer.report.quantity import short
from gossamer.serving.sparsity import Sparsity

if TYPE_CHECKING:
    from gossamer.serving.engine import Engine
    from gossamer.serving.stepping.jobs import Job

LONG, SHORT, BUDGET, FOLLOWING = 6144, 384, 512, 48
ANSWER = 64
DENSE, OURS = "dense", "gossamer"
ASKED = 16


def text(model: Decoder, most: int) -> list[int]:
    """The beginning of a module of Python's library, as tokens."""
    said = inspect.getsource(tarfile)
    if model.tokenizer is None:
        return list(said.encode()[:most])
    return list(model.tokenizer.encode(said, add_special_tokens=False)[:most])


def asked(model: Decoder) -> list[list[int]]:
    """Questions about the functions of the module."""
    names = [name for name, _ in inspect.getmembers(tarfile.TarFile, inspect.isfunction)][:ASKED]
    questions = [f"\n# Question: what does {name} do?\n# Answer:" for name in names]
    if model.tokenizer is None:
        return [list(each.encode()) for each in questions]
    return [list(model.tokenizer.encode(each, add_special_tokens=False)) for each in questions]


def reading(model: Decoder, length: int, sparsity: Sparsity) -> tuple[Engine, list[Job], float]:
    """An engine that has read a text once, with all questions behind it; and the seconds until the first token."""
    document, questions = text(model, length), asked(model)
    longest = len(document) + max(map(len, questions)) + ANSWER + ON
    engine = gs.serving.Engine(
        model.model, sparsity=sparsity, memory=PLENTY, max_length=longest, max_requests=len(questions), prefixes=1,
        end=[],
    )  # fmt: skip
    begin, jobs = clock.now(), []
    for at, question in enumerate(questions):
        jobs.append(engine.add(document + question, endless(ANSWER + ON - 1)))
        while at == 0 and not jobs[0].tokens:
            engine.step()
    first = clock.now() - begin
    while not all(job.tokens for job in jobs):
        engine.step()
    return engine, jobs, first


def compared(model: Decoder, length: int, sparsity: Sparsity, quick: bool) -> tuple[dict[str, Any], float]:
    """Steps of all questions at once, dense and ours; and the seconds to the first token."""
    found = {name: reading(model, length, each) for name, each in ((DENSE, Sparsity()), (OURS, sparsity))}
    calls = {name: Steps(engine, jobs) for name, (engine, jobs, _) in found.items()}
    run = gs.measure.interleave(calls, baseline=DENSE, reps=5 if quick else 11, warmup=1, seconds=12).to_dict()
    return run, found[OURS][2]


def foretold(model: Decoder, length: int, sparsity: Sparsity, tokens: int) -> dict[str, float]:
    """Perplexity of so many tokens that follow the text, given one at a time, dense and ours on the same pages."""
    whole = text(model, length + tokens + 1)
    texts = Texts(model.model, [Text(whole, length)], sparsity)
    found = {}
    for name, each in ((DENSE, Sparsity()), (OURS, sparsity)):
        (scores,), _ = texts.decode(each)
        found[name] = math.exp(-float(scores.logprobs.mean()))
    return found


@torch.inference_mode()
def run(folder: Path, say: Say, quick: bool) -> Outcome:
    say("loading SmolLM2")
    loaded = decoder(quick)
    long, few, tokens = (256, 64, 8) if quick else (LONG, SHORT, FOLLOWING)
    sparsity = Sparsity(token_budget=192 if quick else BUDGET)
    say(f"reading {long:,} tokens of tarfile.py, dense and ours, then answering {ASKED} questions")
    run, first = compared(loaded, long, sparsity, quick)
    say("the same behind a short text")
    short_run, _ = compared(loaded, few, sparsity, quick)
    say("what the model says of the text that follows")
    said = foretold(loaded, long, sparsity, tokens)
    rate = {row["name"]: STEPS * ASKED / row["median"] for row in run["rows"]}
    gain = Timed(
        f"{STEPS} tokens of each of {ASKED} answers about one text of {long:,} tokens: each head reads "
        f"{sparsity.token_budget} of them, in pages that its query chooses",
        OURS, run,
    )  # fmt: skip
    loses = Timed(f"the same behind {few} tokens, which are fewer than a head may read", OURS, short_run)
    facts = (
        (f"{rate[OURS]:.0f}", f"tokens a second of all answers together; dense {rate[DENSE]:.0f}"),
        (f"{said[OURS]:.2f}", f"perplexity of the {tokens} tokens that follow; dense {said[DENSE]:.2f}"),
        (short(first, "s"), "to the first token: a prompt is read whole, once for all questions"),
    )
    return Outcome(gain, loses, facts)


CARD = Card(
    "LServe",
    "My prompts are long: attention that reads the pages it needs",
    "Keys and values lie in pages. While a text is continued each head reads a budget of them, which its query chooses "
    "anew; heads that look at the first and latest tokens only need no more. Questions about one text share its pages.",
    "It loses what the pages that are not read had to say, and gains nothing where the budget holds the whole text.",
    """
llm = gs.serving.LLM("smollm2", sparsity=gs.serving.Sparsity(token_budget=1024), prefixes=4)
for answer in llm.generate([text + question for question in questions]):
    print(answer.text)
""",
    "docs/serving.md",
    run,
)

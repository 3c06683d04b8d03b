"""LServe on SmolLM2: questions about one long text of Python's library, answered together."""

from __future__ import annotations

import inspect
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gossamer as gs
from gossamer.bench.attention.decoders import SMOLLM2, Decoder
from gossamer.bench.attention.steps import ON, PLENTY, STEPS, Steps, endless
from gossamer.cli.tour.card import Card, Outcome, Say, Timed
from gossamer.cli.tour.decoder import decoder
from gossamer.measure import clock
from gossamer.report.quantity import percent, short
from gossamer.serving.sparsity import Sparsity

if TYPE_CHECKING:
    from gossamer.serving.engine import Engine, Job

LONG, SHORT, BUDGET, SAME = 6144, 384, 512, 32
DENSE, OURS = "dense", "gossamer"
ASKED = (
    "# Question: which class opens an archive?\n# Answer:", "# Question: how is a checksum computed?\n# Answer:",
    "# Question: what does the filter argument do?\n# Answer:", "def add_folder(path):",
)  # fmt: skip


def text(model: Decoder, most: int) -> list[int]:
    """The beginning of a module of Python's library, as tokens."""
    said = inspect.getsource(tarfile)
    if model.tokenizer is None:
        return list(said.encode()[:most])
    return list(model.tokenizer.encode(said, add_special_tokens=False)[:most])


def asked(model: Decoder) -> list[list[int]]:
    if model.tokenizer is None:
        return [list(each.encode()) for each in ASKED]
    return [list(model.tokenizer.encode(each, add_special_tokens=False)) for each in ASKED]


def reading(model: Decoder, length: int, sparsity: Sparsity) -> tuple[Engine, list[Job], float]:
    """An engine that has read a text once, with all questions behind it; and the seconds until the first token."""
    document, questions = text(model, length), asked(model)
    longest = len(document) + max(map(len, questions)) + SAME + ON
    engine = gs.serving.Engine(
        model.model, sparsity=sparsity, memory=PLENTY, max_length=longest, max_requests=len(questions), prefixes=1,
        end=[],
    )  # fmt: skip
    begin, jobs = clock.now(), []
    for at, question in enumerate(questions):
        jobs.append(engine.add(document + question, endless(SAME + ON - 1)))
        while at == 0 and not jobs[0].tokens:
            engine.step()
    first = clock.now() - begin
    while not all(job.tokens for job in jobs):
        engine.step()
    return engine, jobs, first


def agreeing(ours: list[Job], dense: list[Job]) -> float:
    """The share of first tokens of the answers before they part."""
    found = 0
    for one, two in zip(ours, dense, strict=True):
        same = [a == b for a, b in zip(one.tokens[:SAME], two.tokens[:SAME], strict=True)]
        found += same.index(False) if False in same else SAME
    return found / (SAME * len(dense))


def compared(model: Decoder, length: int, sparsity: Sparsity, quick: bool) -> tuple[dict[str, Any], float, Any]:
    """Steps of all questions at once, dense and ours; the seconds to the first token; and how far answers agree."""
    found = {name: reading(model, length, each) for name, each in ((DENSE, Sparsity()), (OURS, sparsity))}
    for engine, jobs, _ in found.values():
        while min(len(job.tokens) for job in jobs) < SAME:
            engine.step()
    same = agreeing(found[OURS][1], found[DENSE][1])
    calls = {name: Steps(engine, jobs) for name, (engine, jobs, _) in found.items()}
    run = gs.measure.interleave(calls, baseline=DENSE, reps=5 if quick else 11, warmup=1, seconds=12).to_dict()
    return run, same, {name: each[2] for name, each in found.items()}


@torch.inference_mode()
def run(folder: Path, say: Say, quick: bool) -> Outcome:
    say("loading SmolLM2")
    loaded = decoder(quick)
    long, few = (256, 64) if quick else (LONG, SHORT)
    budget = 192 if quick else BUDGET
    sparsity = Sparsity(token_budget=budget) if quick else Sparsity(token_budget=budget, static=0.5).of(SMOLLM2)
    say(f"reading {long:,} tokens of tarfile.py twice, then answering four questions")
    run, same, first = compared(loaded, long, sparsity, quick)
    say("the same behind a short text")
    short_run, _, _ = compared(loaded, few, sparsity, quick)
    made = STEPS * len(ASKED)
    rate = {row["name"]: made / row["median"] for row in run["rows"]}
    gain = Timed(
        f"{STEPS} tokens of each of {len(ASKED)} answers about one text of {long:,} tokens: each head reads {budget} "
        "of them, in pages that its query chooses, or (half of the heads) the first and latest",
        OURS, run,
    )  # fmt: skip
    loses = Timed(f"the same behind {few} tokens, which are fewer than a head may read", OURS, short_run)
    facts = (
        (f"{rate[OURS]:.0f} tokens/s", f"of four answers together; dense {rate[DENSE]:.0f}"),
        (short(first[OURS], "s"), f"to the first token; dense {short(first[DENSE], 's')}"),
        (percent(same, 0), f"of the first {SAME} tokens of the answers are those of dense attention before they part"),
    )
    return Outcome(gain, loses, facts)


CARD = Card(
    "LServe",
    "My prompts are long: attention that reads the pages it needs",
    "Half of the key heads look at the first and latest tokens only; the others read a budget of pages that the query "
    "chooses anew. Questions about one text share its pages.",
    "It loses what the pages that are not read had to say, and gains nothing where the budget holds the whole text.",
    """
llm = gs.serving.LLM("smollm2", sparsity=gs.serving.Sparsity(token_budget=1024), prefixes=4)
for answer in llm.generate([text + question for question in questions]):
    print(answer.text)
""",
    "docs/serving.md",
    run,
)

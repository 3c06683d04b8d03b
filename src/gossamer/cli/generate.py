"""`gossamer generate`: a model answers about a text of any length, word by word, and says what it read of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from gossamer.cli.flags import as_bytes, text_of, use_threads
from gossamer.cli.language import check_pattern, language_model
from gossamer.measure import clock
from gossamer.ops.paged.pool import Stored
from gossamer.ops.paged.scores import PageScore
from gossamer.serving.sampling import Sampling
from gossamer.serving.sparsity import Sparsity

_LARGEST = 1 << 28


@dataclass(frozen=True)
class Generate:
    """Complete a text, or answer a question about it."""

    model: Annotated[str, tyro.conf.Positional]
    """A name of `gossamer model`, a folder of Hugging Face's or with a .gguf, a .gguf file, or demo."""
    prompt: str | None = None
    """The text, or the question if --prompt-file is given too."""
    prompt_file: Path | None = None
    """A file with a text; - for standard input."""
    raw: bool = False
    """The text as it is, without the model's conversation template."""
    max_tokens: int = 256
    """Tokens of the answer, at most."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float = 1.0
    """Only the likeliest tokens of this probability together."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that were there already get less likely."""
    seed: int | None = None
    """The same answer each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    router: Path | None = None
    """Tokens choose their layers by it: a file of `gossamer route distill`."""
    static: float = 0.0
    """Share of key heads that see the first and the last tokens only."""
    pattern: Path | None = None
    """Which heads those are: a file of `gossamer calibrate`."""
    sink: int = 128
    """First tokens that they see."""
    local: int = 256
    """Last tokens that they see."""
    token_budget: int | None = None
    """Tokens that the other heads read while decoding, in pages that they choose; all when not given."""
    interval: int = 1
    """Tokens after which pages are chosen anew."""
    score: PageScore = "keys"
    """How pages are ranked: by four bits of every key; or by the extremes or the moments of 16 keys together."""
    max_error: float | None = None
    """A head reads more where its output could be further from the dense one, as a share of the longest value."""
    certify: bool = False
    """Say how far it could be."""
    stored: Stored | None = None
    """How keys and values are stored; as the weights when not given."""
    memory: str | None = None
    """For keys and values, like 800M or 2G; half of what is free when not given."""
    max_length: int | None = None
    """Tokens of text and answer together; what the model was made for when not given."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; as they were saved when not given."""
    threads: int | None = None
    """CPU threads; torch's own choice when not given."""
    debug: bool = False
    """Show the traceback of an error."""


def run(config: Generate) -> None:
    """Write the answer to standard output as it comes, and what was read to standard error."""
    use_threads(config.threads)
    sampling = Sampling(
        max_tokens=config.max_tokens, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
        repetition_penalty=config.repetition_penalty, seed=config.seed, stop=config.stop,
    )  # fmt: skip
    check_pattern("--static", config.static, config.pattern)
    sparsity = Sparsity(
        static=config.static, pattern=config.pattern, sink=config.sink, local=config.local,
        token_budget=config.token_budget, interval=config.interval, score=config.score, max_error=config.max_error,
        certify=config.certify, stored=config.stored,
    )  # fmt: skip
    text, memory = _text(config), as_bytes(config.memory)
    llm = language_model(
        config.model, config.router, sparsity=sparsity, dtype=config.dtype, memory=memory,
        max_length=config.max_length, max_requests=1,
    )  # fmt: skip
    chat = not config.raw and getattr(llm.tokenizer, "chat_template", None) is not None
    prompt = llm.chat([{"role": "user", "content": text}]) if chat else llm.encode(text)
    begun, first, job = clock.now(), None, llm.start(prompt, sampling)
    bar = tqdm(total=len(prompt), desc="reading", unit="token", disable=not sys.stderr.isatty(), leave=False)
    try:
        for piece in llm.pieces(job, progress=lambda read: bar.update(read - bar.n)):
            first = first or clock.now()
            bar.close()
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        bar.close()
        llm.engine.stop(job)
    sys.stdout.write("\n")
    sys.stdout.flush()
    ended = clock.now()
    first = first or ended
    rate = (len(job.tokens) - 1) / (ended - first) if ended > first else 0.0
    print(
        f"{len(prompt):,} tokens read in {first - begun:.1f} s, {len(job.tokens):,} written at {rate:.1f} a second "
        f"({job.finished}); {llm.tally}",
        file=sys.stderr,
    )


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read(_LARGEST).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompt-file -: standard input is not a text in UTF-8: byte {error.start} is none"
        ) from None


def _text(config: Generate) -> str:
    """The file and then the prompt."""
    if config.prompt is None and config.prompt_file is None:
        raise ValueError("there is no text: give --prompt, --prompt-file or both")
    parts = []
    if config.prompt_file is not None:
        parts.append(
            _standard_input() if str(config.prompt_file) == "-" else text_of("--prompt-file", config.prompt_file)
        )
    if config.prompt is not None:
        parts.append(config.prompt)
    text = "\n\n".join(parts)
    if not text.strip():
        raise ValueError("the text is empty")
    return text

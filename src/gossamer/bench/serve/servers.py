"""Servers in processes of their own: ours with and without what it skips, and the one that comes with transformers."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gossamer import extras
from gossamer.bench.attention.decoders import TOY, llama, smollm2
from gossamer.bench.section import Settings

PATIENCE = 180  # seconds for a server to read its model


@contextlib.contextmanager
def folder(settings: Settings) -> Iterator[tuple[Path, str] | None]:
    """A checkpoint in float32 with its tokenizer, and the model's name; None where it is not on this machine."""
    with extras.no_progress_bars(), tempfile.TemporaryDirectory() as place:
        decoder = smollm2(settings)
        if decoder is None:
            yield None
            return
        model = llama(TOY, torch.float32) if settings.quick else decoder.model
        model.save_pretrained(place)
        (letters() if decoder.tokenizer is None else decoder.tokenizer).save_pretrained(place)
        yield Path(place), decoder.name


def letters() -> Any:
    """A tokenizer of single bytes with a chat template, for toys."""
    transformers = extras.needed("transformers", "language models need transformers", "serving")
    tokenizers = extras.needed("tokenizers", "language models need tokenizers", "serving")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return tokenizer


def ours(model: Path, *flags: str) -> list[str]:
    """`gossamer serve` of a folder. Prefixes are not kept: no two prompts of a load begin alike."""
    limits = ["--max-num-seqs", "32", "--prefixes", "0", "--served-model-name", str(model)]
    return [sys.executable, "-m", "gossamer", "serve", str(model), *limits, *flags]


def of_transformers(model: Path) -> list[str] | None:
    """`transformers serve` of a folder; None, and a line in the log, where it is not installed."""
    if extras.compared("fastapi", "fastapi, which `transformers serve` needs", "bench") is None:
        return None
    main = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    return [sys.executable, "-c", main, "serve", str(model), "--dtype", "float32", "--device", "cpu"]


@contextlib.contextmanager
def running(command: Sequence[str], threads: int) -> Iterator[int]:
    """The port of a server that is ready; it ends with the block.

    Raises:
        RuntimeError: it ended, or was not ready in three minutes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as said:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=said, env=environment)
        try:
            pause = threading.Event()
            for _ in range(PATIENCE * 10):
                if _ready(port):
                    break
                if process.poll() is not None:
                    break
                pause.wait(0.1)
            else:
                process.kill()
            if process.poll() is not None:
                said.seek(0)
                words = said.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command[:4])} ended before it was ready: {words}")
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(port: int) -> bool:
    """Whether it answers at a path that both kinds have."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

"""The language model that a command runs: as it is, or with a router for its layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they bring transformers, which takes seconds: neither --help nor a wrong flag waits for it
    from gossamer.serving.checkpoints.loading import Loaded
    from gossamer.serving.llm import LLM


def check_pattern(flag: str, static: float, pattern: Path | None) -> None:
    """Raise a ValueError for a file of heads that no setting asks for: it would not even be looked at."""
    if pattern is not None and not static:
        raise ValueError(f"--pattern {pattern} says which heads stream, but {flag} is 0: give it a share above 0")


def check_length(loaded: Loaded, start: int, length: int) -> None:
    """Raise a ValueError for texts of --length tokens, after `start` that begin each, that a model was not made for."""
    longest = getattr(loaded.model.config, "max_position_embeddings", None)
    if longest is not None and start + length > longest:
        raise ValueError(f"--length must be up to {longest - start} for {loaded.source}, got {length}")


def language_model(name: str, router: Path | None, *, dtype: str | None, **settings: Any) -> LLM:
    """An LLM by the name, folder or file of its model.

    Args:
        router: a file of `gossamer route distill`; None: every token runs every layer.

    Raises:
        What `LLM`, and `gossamer.routing.saved.load_routed`, raise; before anything runs.
    """
    from gossamer.serving.llm import LLM

    if router is None:
        return LLM(name, dtype=dtype, **settings)
    from gossamer.routing.saved import load_routed
    from gossamer.serving.checkpoints.loading import load

    loaded = load(name, dtype=dtype)
    return LLM(load_routed(loaded.model, router), tokenizer=loaded.tokenizer, **settings)

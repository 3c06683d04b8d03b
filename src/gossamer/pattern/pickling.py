"""Pickling of a Pattern: torch reads back no pickled uint16 tensor, so indices travel as bytes.

`torch.load(weights_only=True)` calls only what has been declared safe. Rebuilding a pattern is: it stores its
arguments and checks nothing, as `Pattern(...)` does, so `validate()` one that comes from elsewhere. The declaration is
made when `gossamer.pattern` is imported, which every module of gossamer that uses patterns does.
"""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from torch import Tensor

from gossamer.pattern.pattern import Pattern


def _rebuild(offsets: Tensor | None, content: Tensor, wide: bool, *sizes: tuple[int, int]) -> Pattern:
    return Pattern(offsets, content.view(torch.int32 if wide else torch.uint16), *sizes)


def _reduce(p: Pattern) -> tuple[Any, ...]:
    return _rebuild, (p.offsets, p.indices.view(torch.uint8), p.indices.dtype == torch.int32, p.shape, p.tile)


def register() -> None:
    copyreg.pickle(Pattern, _reduce)
    torch.serialization.add_safe_globals([_rebuild])

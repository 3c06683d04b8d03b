"""A Pattern that travels: pickled, and as a pytree node, so that torch.export takes one as an input.

torch reads back no pickled uint16 tensor, so indices travel as bytes. `torch.load(weights_only=True)` calls only what
has been declared safe. Rebuilding a pattern is: it stores its arguments and checks nothing, as `Pattern(...)` does, so
`validate()` one that comes from elsewhere. As a pytree its tensors are the leaves; the sizes are structure, so
`tree_map` sees only tensors. Both are declared when `gossamer.pattern` is imported.
"""

from __future__ import annotations

import copyreg
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from gossamer.pattern.pattern import Pattern


def _rebuild(offsets: Tensor | None, content: Tensor, wide: bool, *sizes: tuple[int, int]) -> Pattern:
    return Pattern(offsets, content.view(torch.int32 if wide else torch.uint16), *sizes)


def _reduce(p: Pattern) -> tuple[Any, ...]:
    return _rebuild, (p.offsets, p.indices.view(torch.uint8), p.indices.dtype == torch.int32, p.shape, p.tile)


def _flatten(p: Pattern) -> tuple[list[Any], Any]:
    return [p.offsets, p.indices], (p.shape, p.tile)


def _flatten_with_keys(p: Pattern) -> tuple[list[Any], Any]:
    return [(pytree.GetAttrKey("offsets"), p.offsets), (pytree.GetAttrKey("indices"), p.indices)], (p.shape, p.tile)


def _unflatten(tensors: Any, sizes: Any) -> Pattern:
    return Pattern(*tensors, *sizes)


def register() -> None:
    copyreg.pickle(Pattern, _reduce)
    torch.serialization.add_safe_globals([_rebuild])
    pytree.register_pytree_node(
        Pattern,
        _flatten,
        _unflatten,
        serialized_type_name="gossamer.Pattern",
        to_dumpable_context=lambda sizes: [list(pair) for pair in sizes],
        from_dumpable_context=lambda sizes: tuple(tuple(pair) for pair in sizes),
        flatten_with_keys_fn=_flatten_with_keys,
    )

"""Pattern as a pytree node, so that torch.export takes one as an input.

The tensors are the leaves; the sizes are structure, so `tree_map` sees only tensors.
"""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree

from gossamer.pattern.pattern import Pattern


def _flatten(p: Pattern) -> tuple[list[Any], Any]:
    return [p.offsets, p.indices], (p.shape, p.tile)


def _flatten_with_keys(p: Pattern) -> tuple[list[Any], Any]:
    return [(pytree.GetAttrKey("offsets"), p.offsets), (pytree.GetAttrKey("indices"), p.indices)], (p.shape, p.tile)


def _unflatten(tensors: Any, sizes: Any) -> Pattern:
    return Pattern(*tensors, *sizes)


def register() -> None:
    pytree.register_pytree_node(
        Pattern,
        _flatten,
        _unflatten,
        serialized_type_name="gossamer.Pattern",
        to_dumpable_context=lambda sizes: [list(pair) for pair in sizes],
        from_dumpable_context=lambda sizes: tuple(tuple(pair) for pair in sizes),
        flatten_with_keys_fn=_flatten_with_keys,
    )

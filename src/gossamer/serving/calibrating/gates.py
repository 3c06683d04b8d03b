"""Attention with a gate for each key head, which has a gradient: gate * full + (1 - gate) * streaming.

    with gated(model, sink=128, local=256) as run:
        run.gates = gates               # float32[layers, key heads]; None: full attention
        model.base_model(ids, use_cache=False)

Inside, the model attends by the function "gossamer-gates" of this module; afterwards it is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from gossamer.serving import hooks

NAME = "gossamer-gates"
BLOCK = 256
"""Queries whose attention to the first and last tokens is computed at a time."""


@dataclass(eq=False)
class Run:
    """How the attention of a model runs: what streaming heads see, and the gates; None for full attention."""

    sink: int
    local: int
    gates: Tensor | None = field(default=None)


_runs: WeakKeyDictionary[nn.Module, Run] = WeakKeyDictionary()


def gated_attention(
    q: Tensor, keys: Tensor, values: Tensor, gates: Tensor | None, *, sink: int, local: int,
    window: int | None = None, scale: float | None = None, cap: float = 0.0,
) -> Tensor:  # fmt: skip
    """Causal attention, part of it over the first `sink` and the last `local` tokens alone.

    Args:
        q: floats [rows, query heads, tokens, width]; the query heads of a key head follow each other.
        keys, values: floats [rows, key heads, tokens, width].
        gates: floats [key heads]: the share of full attention in a head's output; None: all of it.
        local: includes the token itself. window: full attention sees the last so many tokens; None: all.
        scale: of the products; None: width ** -0.5. cap: scores become cap * tanh(score / cap), if above 0.

    Returns:
        like q [rows, tokens, query heads, width], computed in float32 at least, with gradients for all inputs. Memory
        is linear in tokens, but for soft caps: there the scores of one block of queries are in memory at a time.

    Source: DuoAttention (arXiv 2410.10819), section 2.2.

    >>> x = torch.randn(1, 1, 8, 16)
    >>> ones = gated_attention(x, x, x, torch.ones(1), sink=1, local=2)
    >>> bool((ones == gated_attention(x, x, x, None, sink=1, local=2)).all())
    True
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scaled = q.to(dtype) * (q.shape[3] ** -0.5 if scale is None else scale)
    grouped = scaled.unflatten(1, (keys.shape[1], -1))
    keys, values = keys.to(dtype), values.to(dtype)
    if window is None and not cap:
        every, said = (each.repeat_interleave(grouped.shape[2], 1) for each in (keys, values))
        out = scaled_dot_product_attention(scaled, every, said, is_causal=True, scale=1.0).view_as(grouped)
    else:
        out = _windowed(grouped, keys, values, 0, window or q.shape[2], cap)
    if gates is not None and q.shape[2] > sink + local:
        gate = gates.to(dtype)[:, None, None, None]
        out = gate * out + (1 - gate) * _windowed(grouped, keys, values, sink, local, cap)
    return out.flatten(1, 2).transpose(1, 2).to(q.dtype)


def _windowed(q: Tensor, keys: Tensor, values: Tensor, sink: int, local: int, cap: float) -> Tensor:
    """Attention of q [rows, key heads, group, tokens, width] to the first and last tokens, by blocks of queries."""
    length, blocks = q.shape[3], []
    for first in range(0, length, BLOCK):
        end = min(first + BLOCK, length)
        start = max(first + 1 - local, 0)
        block = partial(_block, places=(first, min(sink, start), start, end), sink=sink, local=local, cap=cap)
        some = q[:, :, :, first:end], keys, values
        blocks.append(checkpoint(block, *some, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(blocks, 3)


def _block(
    q: Tensor, keys: Tensor, values: Tensor, *, places: tuple[int, int, int, int], sink: int, local: int, cap: float
) -> Tensor:
    """Attention of queries from places[0] on, to keys before places[1] and from places[2] to places[3]."""
    first, front, start, end = places
    keys, values = (torch.cat([each[:, :, :front], each[:, :, start:end]], 2) for each in (keys, values))
    at = torch.arange(first, end, device=q.device)[:, None]
    of = torch.cat([torch.arange(front, device=q.device), torch.arange(start, end, device=q.device)])
    seen = ((of <= at) & ((of < sink) | (of > at - local))).repeat(q.shape[2], 1)
    flat = q.flatten(2, 3)
    if cap:
        scores = cap * ((flat @ keys.mT) / cap).tanh()
        out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
    else:
        out = scaled_dot_product_attention(flat, keys, values, attn_mask=seen, scale=1.0)
    return out.view_as(q)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, softcap: float | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls; layers with a window of their own have no gates.

    Raises:
        ValueError: what `hooks.refuse` refuses, and padding. RuntimeError: called outside of `gated`.
    """
    hooks.refuse(module, attention_mask, dropout, kwargs)
    if attention_mask is not None:
        raise ValueError("attention with gates takes rows without padding")
    run = _runs.get(module)
    if run is None:
        raise RuntimeError(f"attn_implementation={NAME!r} works inside gossamer.serving.calibrating.gates.gated alone")
    gates = None if run.gates is None or sliding_window is not None else run.gates[module.layer_idx]
    out = gated_attention(
        query, key, value, gates, sink=run.sink, local=run.local, window=sliding_window, scale=scaling,
        cap=softcap or 0.0,
    )  # fmt: skip
    return out, None


@contextmanager
def gated(model: Any, *, sink: int, local: int, recompute: bool = False) -> Iterator[Run]:
    """Inside, a model of transformers is frozen, in evaluation mode, and attends with gates.

    Args:
        recompute: keep the inputs of its layers alone for the backward pass, which computes the rest again.

    Raises:
        ValueError: it does not ask transformers for its attention. RuntimeError: it is inside `gated` already.
    """
    modules = list(model.modules())
    if any(module in _runs for module in modules):
        raise RuntimeError(f"{type(model).__name__} is being calibrated already")
    run = Run(sink, local)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in modules]
    attending = hooks.Attending(model, NAME)
    layers = [each for each in modules if isinstance(each, GradientCheckpointingLayer)] if recompute else []
    own = [vars(layer).get("forward") for layer in layers]
    try:
        model.requires_grad_(False).eval()
        _runs.update(dict.fromkeys(modules, run))
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        with attending():
            yield run
    finally:
        for layer, forward in zip(layers, own, strict=True):
            vars(layer).pop("forward", None)
            vars(layer).update({} if forward is None else {"forward": forward})
        for module, mode in modes:
            module.training = mode
            _runs.pop(module, None)
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, hooks.padding)

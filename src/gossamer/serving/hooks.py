"""Attention and mask functions named "gossamer" for transformers, for any decoder that asks its attention interface.

With a `SparseCache` the keys are in pages and attention reads them there. With any other cache, or none, keys come
whole: they are put into pages for the call, and attention is dense. What these functions cannot do they refuse.
Importing this module makes the name known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from gossamer import ops
from gossamer.ops.paged.pool import PAGE, Batch, PagePool
from gossamer.serving.attending.ticket import Ticket
from gossamer.serving.sparsity import STORED
from gossamer.serving.stepping.turns import turns_of

NAME = "gossamer"
SAMPLES = 256
_REFUSED = {
    "s_aux": "attention sinks that are learned", "position_bias": "a bias by position", "head_mask": "masks of heads",
    "block_mask": "block masks", "indexer": "an indexer",
}  # fmt: skip


def padding(
    batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None, attention_mask: Tensor | None = None,
    local_size: int | None = None, use_vmap: bool = False, device: Any = "cpu", **kwargs: Any,
) -> Tensor | None:  # fmt: skip
    """What attention needs of a mask: bool[batch, kv_length], False for padding; None if there is none.

    Raises:
        ValueError: the mask is not causal, with or without a window: what it hides is tried at places over all of it.
    """
    if batch_size == 0:
        return None
    end = kv_offset + kv_length
    if end != int(q_offset) + q_length:
        raise ValueError(
            f"keys end at {end} and queries at {int(q_offset) + q_length}: attn_implementation='gossamer' takes caches "
            "that hold what there is, not ones of a fixed size"
        )
    if mask_function is not None:
        places = q_length, kv_length, int(q_offset), kv_offset
        _check_causal(mask_function, batch_size, places, local_size, use_vmap, device)
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[1] < end:
        raise ValueError(
            f"attention_mask must have shape [{batch_size}, {end}], 1 for tokens and 0 for padding, got "
            f"{list(attention_mask.shape)}"
        )
    mask = attention_mask[:, kv_offset:end].bool()
    return None if bool(mask.all()) else mask


def _check_causal(
    mask_function: Callable[..., Any], batch: int, places: tuple[int, int, int, int], window: int | None,
    use_vmap: bool, device: Any,
) -> None:  # fmt: skip
    """Compare a mask function with causal attention at the edges of what a query sees, and at places in between."""
    if use_vmap:
        raise ValueError("attn_implementation='gossamer' takes causal masks alone; this model adds a mask of its own")
    q_length, kv_length, q_offset, kv_offset = places
    generator = torch.Generator().manual_seed(q_length)
    q = torch.randint(q_length, (SAMPLES,), generator=generator, device="cpu") + q_offset
    q[:2] = torch.tensor([q_offset, q_offset + q_length - 1], device="cpu")
    near = torch.tensor([-1, 0, 1], device="cpu").repeat(SAMPLES // 3 + 1)[:SAMPLES]
    edge = q - (window or 0) * (torch.arange(SAMPLES, device="cpu") % 2)
    anywhere = torch.randint(kv_length, (SAMPLES,), generator=generator, device="cpu") + kv_offset
    for keys in ((edge + near).clamp(kv_offset, kv_offset + kv_length - 1), anywhere):
        rows = torch.arange(SAMPLES, device="cpu") % batch
        expected = keys <= q
        if window is not None:
            expected &= keys > q - window
        found = mask_function(rows.to(device), torch.zeros_like(rows).to(device), q.to(device), keys.to(device))
        wrong = (torch.as_tensor(found, device="cpu").expand(SAMPLES) != expected).nonzero()
        if wrong.numel():
            at = int(wrong[0])
            raise ValueError(
                f"attn_implementation='gossamer' takes causal masks alone, with or without a window; in this one token "
                f"{int(q[at])} and key {int(keys[at])} are {'apart' if expected[at] else 'together'}"
            )


@torch.compiler.disable  # pages are taken and given back between two calls: no part of a graph
def attention(
    module: nn.Module, query: Tensor, key: Tensor | Ticket, value: Tensor | Ticket, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, softcap: float | None = None,
    sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention of query [batch, heads, new tokens, width]; returns [batch, new tokens, heads, width] and None.

    Padding gives zeros.

    Raises:
        ValueError, RuntimeError: what is asked for is not supported: dropout, gradients, attention weights, masks of
            four dimensions, attention that is not causal, learned sinks, biases.
    """
    refuse(module, attention_mask, dropout, kwargs)
    if query.requires_grad:
        raise RuntimeError(
            "attn_implementation='gossamer' has no gradient: use torch.no_grad(), or 'sdpa' for training"
        )
    if isinstance(key, Ticket) and isinstance(value, Ticket):
        out = _from_pages(query, key, value, attention_mask, scaling, softcap or 0.0, sliding_window)
    elif isinstance(key, Tensor) and isinstance(value, Tensor):
        out = _from_keys(query, key, value, attention_mask, scaling, softcap or 0.0, sliding_window)
    else:
        kinds = type(key).__name__, type(value).__name__
        raise TypeError(f"key and value must both come from one cache, got {kinds[0]} and {kinds[1]}")
    return out.to(query.dtype), None


def refuse(module: nn.Module, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> None:
    """Raise ValueError for what attention over pages cannot do."""
    if dropout:
        raise ValueError(f"attn_implementation='gossamer' has no dropout, got {dropout}: call model.eval()")
    if kwargs.get("output_attentions"):
        raise ValueError("attn_implementation='gossamer' makes no attention weights: use 'eager' for output_attentions")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise ValueError(f"{type(module).__name__} is not causal; attn_implementation='gossamer' is for decoders")
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation='gossamer' does not support {what} ({name})")
    if mask is not None and mask.dim() != 2:
        raise ValueError(
            f"attn_implementation='gossamer' takes a mask [batch, keys] of padding, got {list(mask.shape)}"
        )


def _packed(states: Tensor, places: Tensor | None) -> Tensor:
    """[batch, heads, tokens, width] as [tokens of all rows, heads, width], those at `places`."""
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat if places is None else flat[places]


def _unpacked(out: Tensor, query: Tensor, places: Tensor | None) -> Tensor:
    if places is not None:
        whole = out.new_zeros(query.shape[0] * query.shape[2], *out.shape[1:])
        whole[places] = out
        out = whole
    return out.view(query.shape[0], query.shape[2], *out.shape[1:])


def _from_pages(
    query: Tensor, key: Ticket, value: Ticket, mask: Tensor | None, scale: float | None, cap: float, window: int | None
) -> Tensor:
    keys = key.keys
    if window is not None and window != keys.window:
        raise ValueError(f"layer {keys.index} has a window of {window}, and its config {keys.window}")
    step, places = keys.enter(mask)
    attend = keys.attending(scale, cap)
    out = attend(_packed(query, places), _packed(key.states, places), _packed(value.states, places), step)
    return _unpacked(out, query, places)


def _from_keys(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, cap: float, window: int | None
) -> Tensor:
    """Dense attention over keys [batch, key heads, keys, width] that some other cache has."""
    rows, heads, new, width = query.shape
    key_heads, total = key.shape[1], key.shape[2]
    if value.shape != key.shape or width != key.shape[3] or heads % key_heads:
        raise ValueError(
            f"query, key and value must share their width and the query heads be a multiple of the key heads, got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    if mask is not None and tuple(mask.shape) != (rows, total):
        raise ValueError(f"attention_mask must have shape {[rows, total]}, got {list(mask.shape)}")
    seen = torch.ones(rows, total, dtype=torch.bool, device=query.device) if mask is None else mask
    lengths, counts = seen.sum(1).tolist(), seen[:, -new:].sum(1).tolist()
    places = None if mask is None else seen[:, -new:].flatten().nonzero()[:, 0]
    if query.dtype not in STORED:
        raise ValueError(f"query must be float32, bfloat16 or float16, got {query.dtype}")
    tables, first = [], 0
    for length in lengths:
        pages = -(-length // PAGE)
        tables.append(list(range(first, first + pages)))
        first += pages
    pool = PagePool.allocate(
        first, key_heads, width, stored=STORED[query.dtype], extremes=None, moments=None, device=query.device
    )
    everything = None if mask is None else seen.flatten().nonzero()[:, 0]
    ops.page_append(
        _packed(key, everything), _packed(value, everything), pool, Batch.of(lengths, lengths, tables, query.device)
    )
    out = ops.page_attention(
        _packed(query, places).float(), pool, Batch.of(counts, lengths, tables, query.device), group=heads // key_heads,
        window=window, scale=scale, cap=cap,
    )  # fmt: skip
    return _unpacked(out, query, places)


class Attending:
    """Has a model of transformers attend by these functions for a while, or by others that are registered; one thread
    at a time.

    Raises:
        ValueError: the model does not ask transformers for its attention.
    """

    def __init__(self, model: Any, name: str = NAME) -> None:
        self.name, self.model = name, model
        before = model.config._attn_implementation
        try:
            model.set_attn_implementation(name)
            if model.config._attn_implementation != name:
                raise ValueError("it keeps its own")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{type(model).__name__} does not take other attention: {error}") from None
        finally:
            model.config._attn_implementation = before
        every = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        self.configs = list(every.values())

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside it does; afterwards it attends as before."""
        with turns_of(self.model):
            before = [config._attn_implementation for config in self.configs]
            try:
                for config in self.configs:
                    config._attn_implementation = self.name
                yield
            finally:
                for config, name in zip(self.configs, before, strict=True):
                    config._attn_implementation = name


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, padding)

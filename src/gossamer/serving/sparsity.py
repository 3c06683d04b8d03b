"""What is skipped: heads that stream, pages that are not chosen; and what each layer makes of it."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gossamer.ops.paged.pool import PAGE, STRETCH, PagePool, Stored
from gossamer.ops.paged.scores import PageScore
from gossamer.serving.geometry import Geometry
from gossamer.serving.heads import SHIPPED, HeadPattern, spread
from gossamer.serving.prefill import Antidiagonal, PrefillPolicy

logger = logging.getLogger(__name__)

SelectPer = Literal["kv_group", "q_head"]
STORED: dict[torch.dtype, Stored] = {
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Sparsity:
    """What attention may skip. With all defaults nothing is: attention is dense, over pages.

    Attributes:
        static: the share of all key heads that stream: they see the first `sink` and the last `local` tokens.
        pattern: gates that say which (a `HeadPattern`, or the file or folder of one); `gossamer calibrate` makes them.
            None: those that come with a model known by its name; else the later heads of each layer, with a warning if
            static is above 0.
        sink, local: what streaming heads see, in prefill and in decoding alike; local counts the token itself.
        token_budget: while decoding, a head that does not stream reads so many tokens, in pages that its query
            chooses; a multiple of page and at least three of them. None: all. Requests that have no more are dense, to
            the bit.
        interval: pages are chosen anew after so many tokens, and when a page opens.
        score: how pages are ranked, as in `gossamer.ops.page_scores`: by "keys", four bits of each; or by what is
            kept of `stretch` keys together, "extremes" or "moments", which takes less memory and time and finds less.
        select_per: "kv_group": the query heads that share a key head read the same pages, each page once. "q_head":
            each its own.
        dense_layers: layers that neither stream nor choose.
        max_error: how far the output of a head may be from the dense one, as a share of the longest value vector of
            the request. A head whose bound is above takes four times the pages, and at last all. None: no limit.
        certify: compute that bound and keep it, without acting on it.
        prefill: what heads that do not stream read of a prompt, a policy of `gossamer.serving.prefill`; None: all.
        stored: how keys and values are stored; None: in the dtype of the model.
        page, stretch: tokens of a page, and of the stretches that are summarized: the score of a page is the largest of
            theirs.

    Raises:
        ValueError: naming the attribute, its value and what was expected.

    Source: LServe (arXiv 2502.14866), sections 3.3 to 3.5.

    >>> Sparsity(static=0.5, token_budget=4096).budget_pages
    64
    """

    static: float = 0.0
    pattern: HeadPattern | str | Path | None = None
    sink: int = 128
    local: int = 256
    token_budget: int | None = None
    interval: int = 1
    score: PageScore = "keys"
    select_per: SelectPer = "kv_group"
    dense_layers: tuple[int, ...] = ()
    max_error: float | None = None
    certify: bool = False
    prefill: PrefillPolicy | None = None
    stored: Stored | None = None
    page: int = PAGE
    stretch: int = STRETCH

    def __post_init__(self) -> None:
        if not isinstance(self.static, (int, float)) or not 0 <= self.static <= 1:
            raise ValueError(f"static must be a share from 0 to 1, got {self.static!r}")
        for name, least in (("sink", 0), ("local", 1), ("interval", 1), ("page", 32), ("stretch", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.page % 32 or self.page > 256:
            raise ValueError(f"page must be a multiple of 32 up to 256, got {self.page}")
        if self.page % min(self.stretch, self.page):
            raise ValueError(f"stretch must divide the page of {self.page} tokens, got {self.stretch}")
        budget, least = self.token_budget, 3 * self.page
        if budget is not None and (not isinstance(budget, int) or budget % self.page or budget < least):
            raise ValueError(
                f"token_budget must be a multiple of the page of {self.page} tokens, and at least {least}, or None; "
                f"got {budget!r}"
            )
        for name, kinds in (("score", PageScore), ("select_per", SelectPer), ("stored", Stored)):
            value = getattr(self, name)
            if value not in get_args(kinds) and not (name == "stored" and value is None):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
        if self.max_error is not None and not (math.isfinite(self.max_error) and self.max_error > 0):
            raise ValueError(f"max_error must be a number above 0, or None for no limit, got {self.max_error!r}")
        if isinstance(self.prefill, Antidiagonal) and self.page % self.prefill.stride:
            raise ValueError(f"prefill has a stride of {self.prefill.stride}, expected a divisor of page={self.page}")
        if self.prefill is not None and not hasattr(self.prefill, "choose"):
            raise ValueError(f"prefill must be a policy of gossamer.serving.prefill, or None, got {self.prefill!r}")
        if self.bounded and budget is None:
            raise ValueError(f"max_error and certify need token_budget, got max_error={self.max_error!r} without one")
        if self.bounded and self.select_per == "q_head":
            raise ValueError("max_error and certify are for select_per='kv_group', got select_per='q_head'")
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))

    @property
    def bounded(self) -> bool:
        """Whether the error is bounded at every step."""
        return self.certify or self.max_error is not None

    @property
    def budget_pages(self) -> int | None:
        return None if self.token_budget is None else self.token_budget // self.page

    def stored_for(self, dtype: torch.dtype) -> Stored:
        """How keys and values of a model that computes in `dtype` are stored."""
        return self.stored or STORED[dtype]

    def of(self, model: object) -> Sparsity:
        """The same; with the gates that come with a model which is given by its name, where `static` has no pattern.

        >>> Sparsity(static=0.5).of("smollm2").pattern.name
        'smollm2'
        """
        if self.static == 0 or self.pattern is not None or not isinstance(model, str):
            return self
        if model not in SHIPPED or os.path.lexists(model):  # what lies there goes before the name
            return self
        logger.info("static=%s: the gates of %s are those of %s", self.static, model, SHIPPED[model])
        return replace(self, pattern=SHIPPED[model])

    def gates(self, geometry: Geometry) -> HeadPattern:
        """The gates of a model's heads.

        Raises:
            ValueError: they are of another shape than the model.
        """
        layers, heads = len(geometry.layers), max(geometry.key_heads)
        if min(geometry.key_heads) != heads:
            raise ValueError(f"static must be 0 for layers of {min(geometry.key_heads)} to {heads} key heads")
        if self.pattern is None:
            logger.warning(
                "static=%s without a pattern: the later heads of each layer stream, whatever they look for; "
                "`gossamer calibrate` measures which may", self.static,
            )  # fmt: skip
            return spread(layers, heads)
        pattern = self.pattern if isinstance(self.pattern, HeadPattern) else HeadPattern.load(self.pattern)
        if tuple(pattern.gates.shape) != (layers, heads):
            of = "" if isinstance(self.pattern, HeadPattern) else f" in {self.pattern}"
            raise ValueError(
                f"pattern has {list(pattern.gates.shape)} gates{of}, expected {[layers, heads]}, layers and key heads"
            )
        return pattern

    def parts(self, geometry: Geometry) -> tuple[tuple[Part, ...], ...]:
        """The heads of each layer, by what they see; of each slot, where tokens may pass through layers several times.

        Raises:
            ValueError: dense_layers or pattern do not fit the model.
        """
        if geometry.hops > 1:
            return self.parts(geometry.once) * geometry.hops
        count = len(geometry.layers)
        wrong = [layer for layer in self.dense_layers if not 0 <= layer < count]
        if wrong:
            raise ValueError(f"dense_layers must be from 0 to {count - 1}, got {wrong[0]}")
        streaming = None
        if self.static > 0:
            streaming = self.gates(geometry).streaming(self.static)
        return tuple(
            self._split(shape.key_heads, shape.window, None if at in self.dense_layers else streaming, at)
            for at, shape in enumerate(geometry.layers)
        )

    def _split(self, heads: int, window: int | None, streaming: Tensor | None, at: int) -> tuple[Part, ...]:
        sparse = at not in self.dense_layers
        choices = self.token_budget is not None and sparse, self.prefill is not None and sparse
        if window is not None:
            return (Part(View(window, 0), torch.arange(heads, device="cpu"), False, False),)
        if streaming is None:
            return (Part(View(None, 0), torch.arange(heads, device="cpu"), *choices),)
        some, others = (rows.nonzero()[:, 0] for rows in (~streaming[at], streaming[at]))
        parts = Part(View(None, 0), some, *choices), Part(View(self.local, self.sink), others, False, False)
        return tuple(part for part in parts if part.heads.numel())


@dataclass(frozen=True)
class View:
    """What a head may see of the keys before a token: the last `window`, itself among them, and the first `sink`."""

    window: int | None
    sink: int

    def first_seen(self, length: int) -> int:
        """The first token beyond the sinks that the next token after `length` of them still sees.

        >>> View(256, 64).first_seen(1000)
        745
        """
        return 0 if self.window is None else max(length + 1 - self.window, 0)


@dataclass(frozen=True, eq=False)
class Part:
    """Heads of a layer that see alike: their view, which they are (int64), and whether they choose pages, while they
    decode and while a prompt is read.

    Attributes:
        first: the first of the heads that see alike is among them, and not on another rank: what is counted once for a
            layer is counted here.
    """

    view: View
    heads: Tensor
    chooses: bool
    prefill: bool
    first: bool = True

    def pool(self, count: int, width: int, sparsity: Sparsity, stored: Stored, device: torch.device) -> PagePool:
        """Memory for `count` pages of these heads; summaries only where something is chosen by them."""
        return PagePool.allocate(count, self.heads.numel(), width, stored=stored, device=device, **self.kept(sparsity))

    def kept(self, sparsity: Sparsity) -> dict[str, Any]:
        """The page and its summaries, as `PagePool.allocate` and `page_bytes` take them."""
        extremes = self.chooses and (sparsity.score == "extremes" or sparsity.bounded)
        moments = self.chooses and sparsity.score == "moments"
        return {
            "page": sparsity.page,
            "extremes": sparsity.stretch if extremes else None,
            "moments": sparsity.stretch if moments else None,
            "sketched": self.chooses and sparsity.score == "keys",
        }

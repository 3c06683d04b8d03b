"""`SparseCache`: a cache of transformers' whose keys and values lie in pages.

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="gossamer")
    cache = SparseCache(model.config, token_budget=4096)
    model.generate(ids, past_key_values=cache)

Its rows are requests of a store; what is padding has no page.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.serving.geometry import Geometry
from gossamer.serving.paged_cache import PagedCache, PagedLayer
from gossamer.serving.paging.pages import OutOfPages
from gossamer.serving.paging.requests import Request, Step
from gossamer.serving.paging.store import Store, most_pages, views
from gossamer.serving.sparsity import Sparsity

FIRST = 1024  # tokens that there is room for at first, when no capacity is given


class SparseCache(PagedCache):
    """Keys and values of a batch in pages, with heads that stream and pages that queries choose.

    Args:
        config: of the model, which must run with attn_implementation="gossamer"; or a model's own `geometry`.
        sparsity: what is skipped; or its attributes as keywords. Without either nothing is.
        capacity: tokens of a row that memory is taken for at once; None: it grows.
        device: where the pages lie; None: where the first keys are.

    Attributes:
        tally: what was read of what could have been.

    Raises:
        ValueError: a model or numbers that are not supported. Padding is told by the model's 2D attention mask.

    Source: LServe (arXiv 2502.14866).

    >>> from transformers import LlamaConfig
    >>> cache = SparseCache(LlamaConfig(num_hidden_layers=2), token_budget=4096, stored="int8")
    >>> cache.get_seq_length(), len(cache.layers)
    (0, 2)
    """

    def __init__(
        self, config: Any, sparsity: Sparsity | None = None, *, capacity: int | None = None,
        device: torch.device | str | None = None, **attributes: Any,
    ) -> None:  # fmt: skip
        if sparsity is not None and attributes:
            raise ValueError(f"sparsity and its attributes {sorted(attributes)} were both given, expected one of them")
        if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
            raise ValueError(f"capacity must be a number of tokens of at least 1, or None, got {capacity!r}")
        geometry = config if isinstance(config, Geometry) else Geometry.of(config)
        super().__init__(geometry, Sparsity(**attributes) if sparsity is None else sparsity)
        self.parts = self.sparsity.parts(self.geometry)
        self.views = views(self.parts)
        self.capacity, self.device = capacity, device
        self._clear()

    def _clear(self) -> None:
        self.store: Store | None = None
        self.rows: list[Request] = []
        self.columns = 0  # tokens of each row, with padding
        self.passes = 0
        self.spoiled = False
        self.fresh = 0  # new tokens of each row in the present pass
        self.step: Step | None = None
        self.places: Tensor | None = None
        self.real = torch.ones(0, 0, dtype=torch.bool, device="cpu")  # [rows, columns]: which tokens are no padding

    @property
    def is_croppable(self) -> bool:
        return all(view.window is None for view in self.views)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return 0 if self.store is None else self.store.nbytes

    def reset(self) -> None:
        """Forget all tokens."""
        self._clear()
        for layer in self.stack:
            layer.passes, layer.attention = 0, None

    def columns_before(self, layer: PagedLayer) -> int:
        """Tokens of a row that a layer has: in the middle of a pass not all layers have the new ones."""
        return self.columns - (self.fresh if layer.passes < self.passes else 0)

    def arrive(self, layer: PagedLayer, keys: Tensor, values: Tensor) -> None:
        """New states come to a layer; the first of a pass begins it."""
        if self.rows and keys.shape[0] != len(self.rows):
            raise ValueError(f"keys have {keys.shape[0]} rows and the cache {len(self.rows)}")
        if layer.passes == self.passes:
            self._begin(f"layer {layer.index}", keys.shape[0], keys.shape[2], keys.device, keys.dtype)
        elif keys.shape[2] != self.fresh:
            raise ValueError(f"layer {layer.index} got {keys.shape[2]} new tokens, the layers before it {self.fresh}")
        layer.passes = self.passes

    def spoil(self) -> None:
        self.spoiled = True

    def _begin(self, who: str, batch: int, new: int, device: torch.device | str, dtype: torch.dtype) -> None:
        """A pass of `new` tokens of each row."""
        if self.spoiled:
            raise RuntimeError(f"{who} began a new pass, and the last one ended in its middle: reset() the cache")
        behind = [each.index for each in self.stack if each.passes != self.passes]
        if behind:
            raise RuntimeError(f"{who} began a new pass and layer {behind[0]} is not through the last")
        if self.store is None:
            self._open(batch, new, device, dtype)
        self._finish()
        self.passes += 1
        self.fresh = new
        self.columns += new

    def _open(self, batch: int, new: int, device: torch.device | str, dtype: torch.dtype) -> None:
        tokens, page = max(self.capacity or FIRST, new), self.sparsity.page
        pages = {view: batch * most_pages(view, tokens, new, page) for view in self.views}
        stored = self.sparsity.stored_for(dtype)
        self.store = Store(self.geometry, self.sparsity, stored, self.parts, pages, self.device or device)
        self.rows = [self.store.open() for _ in range(batch)]
        self.real = torch.ones(batch, 0, dtype=torch.bool, device=device)

    def enter_routed(
        self, batch: int, new: int, mask: Tensor | None, device: torch.device | str, dtype: torch.dtype
    ) -> tuple[Step, Tensor | None]:
        """A pass whose layers take only some of the tokens; see `PagedCache.route`."""
        if self.rows and batch != len(self.rows):
            raise ValueError(f"batch must be the {len(self.rows)} rows of the cache, got {batch}")
        total = self.columns + new
        if mask is not None and tuple(mask.shape) != (batch, total):
            raise ValueError(f"mask must be [{batch}, {total}], 1 for tokens, 0 for padding, got {list(mask.shape)}")
        self._begin("a routed pass", batch, new, device, dtype)
        if mask is not None:
            mask = None if mask.all() and self.real.all() else mask.bool()
        step, places = self.enter(mask)
        for layer in self.stack:
            layer.passes = self.passes
        return step, places

    def _finish(self) -> None:
        """End the pass before: what no row will see again is given back."""
        if self.step is not None and self.store is not None:
            self.store.trim(self.rows)
        self.step, self.places = None, None

    def enter(self, mask: Tensor | None) -> tuple[Step, Tensor | None]:
        """The step of the present pass, made by the first layer that attends; see `PagedCache`."""
        if self.step is None:
            assert self.store is not None
            counts = [self.fresh] * len(self.rows)
            before = self.columns - self.fresh
            if mask is not None:
                if not torch.equal(mask[:, :before], self.real):
                    raise ValueError(
                        "attention_mask has changed for tokens that the cache has; expected more columns only"
                    )
                new = mask[:, -self.fresh :]
                counts, self.places = new.sum(1).tolist(), new.flatten().nonzero()[:, 0]
                self.real = mask
            else:
                self.real = torch.nn.functional.pad(self.real, (0, self.fresh), value=True)
            self.step = self._extend(counts)
        return self.step, self.places

    def _extend(self, counts: list[int]) -> Step:
        store = self.pages
        for view, pages in store.pages.items():
            needed = sum(store.needed(row, count)[view] for row, count in zip(self.rows, counts, strict=True))
            if needed > pages.free:
                if self.capacity is not None and self.columns > self.capacity:
                    raise OutOfPages(f"capacity of {self.capacity} tokens is full with {self.columns} of each row")
                store.grow(view, pages.count + max(needed - pages.free, pages.count // 2))
        # A pass with one column is a token that is decoded, unless it is the first or padding.
        one = self.fresh == 1 and self.columns > 1 and all(count == 1 for count in counts)
        return store.extend(self.rows, counts, decoding=len(counts) if one else 0)

    @property
    def pages(self) -> Store:
        if self.store is None:
            raise RuntimeError("the cache has no pages before its first keys")
        return self.store

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last -tokens_to_remove tokens of each row away, which must not be padding."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be at most 0, got {tokens_to_remove}")
        if tokens_to_remove == 0 or self.store is None:
            return
        self._finish()
        for row in self.rows:
            self.store.cropped(row, -tokens_to_remove)  # raises before any row has changed
        for row in self.rows:
            self.store.crop(row, -tokens_to_remove)
        self.columns += tokens_to_remove
        self.real = self.real[:, : self.columns]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Have the rows `indices`, of which some may come several times."""
        if self.store is None:
            return
        self._finish()
        chosen = [self.rows[row] for row in indices.tolist()]
        kept = [row if row not in chosen[:at] else self.store.fork(row) for at, row in enumerate(chosen)]
        for row in self.rows:
            if row not in chosen:
                self.store.close(row)
        self.rows, self.real = kept, self.real[indices.to(self.real.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Have the rows that a beam search goes on with."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have each row `repeats` times."""
        self.batch_select_indices(torch.arange(len(self.rows), device="cpu").repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

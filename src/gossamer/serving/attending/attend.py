"""One layer's attention for a batch: keys are written, heads that stream see their window, the others what they chose.

    layer = LayerAttention(store, 3)
    out = layer(q, keys, values, step)

All parts of a layer write into one result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer import ops
from gossamer.ops.paged.pool import Batch
from gossamer.pattern import Pattern
from gossamer.serving.attending.certificate import error_bound, page_bounds
from gossamer.serving.attending.selection import Selection
from gossamer.serving.paging.requests import Step
from gossamer.serving.paging.store import Store
from gossamer.serving.sparsity import View
from gossamer.serving.tally import Tally

WIDER = 4
"""A head whose error may be too large reads so many times the budget before it reads all."""


class LayerAttention:
    """Attention of one layer over the pages of a store, and what its requests have chosen there.

    Args:
        scale: of products of queries and keys; None: width ** -0.5. cap: scores become cap * tanh(score / cap).
    """

    def __init__(self, store: Store, layer: int, tally: Tally, scale: float | None = None, cap: float = 0.0) -> None:
        shape = store.geometry.layers[layer]
        self.store, self.layer, self.tally = store, layer, tally
        self.group, self.cap = shape.group, cap
        self.scale = shape.width**-0.5 if scale is None else scale
        self.selections = [
            Selection((layer, at), store.sparsity, self.group, self.scale) for at in range(len(store.parts[layer]))
        ]
        self.heads = store.heads[layer]

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """
        Args:
            q: [tokens, query heads, width]; keys, values: [tokens, key heads, width]; those of requests that decode
                come first, as in the step.

        Returns:
            float32 like q.
        """
        self.store.append(self.layer, keys, values, step)
        return self.attend(q, step)

    def attend(self, q: Tensor, step: Step) -> Tensor:
        """Attention of the new tokens, whose keys are written."""
        q = q.detach().float().contiguous()
        out = torch.zeros_like(q)
        one = step.decoding
        for at, part in enumerate(self.store.parts[self.layer]):
            batches = step.batches[part.view]
            if one:
                self._decode(q[:one], out[:one], at, batches.ones, step)
            if one < len(step.requests):
                lists = self._prefill_lists(q[one:], at, step) if part.prefill else None
                self._read(q[one:], out[one:], at, batches.others, lists)
                self.tally.prefill(part, step.lengths[one:], step.counts[one:], lists)
        return out

    def _read(
        self, q: Tensor, out: Tensor, at: int, batch: Batch, lists: Pattern | None = None, lse: Tensor | None = None
    ) -> None:
        """Attention of the heads of a part to all that they see, or to what is listed."""
        view = self.store.parts[self.layer][at].view
        ops.page_attention(
            q, self.store.pools[self.layer][at], batch, heads=self.heads[at] * self.group, group=self.group,
            lists=lists, window=view.window, sink=view.sink, scale=self.scale, cap=self.cap, out=out, lse=lse,
        )  # fmt: skip

    def _decode(self, q: Tensor, out: Tensor, at: int, batch: Batch, step: Step) -> None:
        """Attention of single tokens of a part's heads, which may choose what they read."""
        part, selection, pool = self.store.parts[self.layer][at], self.selections[at], self.store.pools[self.layer][at]
        lists = None
        if part.chooses:
            before = selection.refreshed
            requests, lengths = step.requests[: step.decoding], step.lengths[: step.decoding]
            lists = selection.lists(q, pool, batch, requests, lengths, self.heads[at] * self.group)
            self.tally.chose(part, lengths, lists, selection.refreshed - before, pool.page)
        else:
            self.tally.decode(part, step.lengths[: step.decoding])
        if lists is None:
            self._read(q, out, at, batch)
        elif self.store.sparsity.bounded:
            self._bounded(q, out, at, batch, lists, -(-max(step.lengths[: step.decoding]) // pool.page))
        elif self.store.sparsity.select_per == "q_head":
            self._each_head(q, out, at, batch, lists)
        else:
            self._read(q, out, at, batch, lists)

    def _prefill_lists(self, q: Tensor, at: int, step: Step) -> Pattern | None:
        """The pages that the prompts' blocks read, by the policy; None where all texts are short: all."""
        sparsity, pool, view = self.store.sparsity, self.store.pools[self.layer][at], View(None, 0)
        policy, page, rows, begin = sparsity.prefill, pool.page, [], 0
        assert policy is not None
        texts = list(zip(step.requests, step.counts, step.lengths, strict=True))[step.decoding :]
        if all(length <= policy.beyond for _, _, length in texts):
            return None
        most = step.batches[view].every.table.shape[1]
        for request, count, length in texts:
            pages = torch.tensor(request.tables[view][: -(-length // page)], device=q.device)
            blocks = -(-count // page)
            if length <= policy.beyond or (length - count) % page:
                own = torch.arange(length - count, length, page, device=q.device) + page - 1
                seen = torch.arange(len(pages), device=q.device) <= own[:, None] // page
                chosen = seen[:, None].expand(-1, pool.heads, -1)
            else:
                keys = pool.read_keys(pages).transpose(0, 1).flatten(1, 2)[:, :length]
                mine = q[begin : begin + count].view(count, -1, self.group, q.shape[2])[:, self.heads[at]]
                chosen = policy.choose(mine.permute(1, 2, 0, 3), keys, page, self.scale)
            assert chosen.shape[0] == blocks
            rows.append(torch.nn.functional.pad(chosen, (0, most - len(pages))).flatten(0, 1))
            begin += count
        return Pattern.from_tile_mask(torch.cat(rows), (page, 1))

    def _each_head(self, q: Tensor, out: Tensor, at: int, batch: Batch, lists: Pattern) -> None:
        """Each query head its own pages: the members of all groups in turn."""
        rows = torch.arange(lists.shape[0], device=q.device).view(-1, self.group)
        for member in range(self.group):
            ops.page_attention(
                q, self.store.pools[self.layer][at], batch, heads=self.heads[at] * self.group + member,
                lists=_rows(lists, rows[:, member]), scale=self.scale, cap=self.cap, out=out,
            )  # fmt: skip

    def _bounded(self, q: Tensor, out: Tensor, at: int, batch: Batch, lists: Pattern, most: int) -> None:
        """Attention whose error is bounded: heads over the limit read more pages, and at last all, `most`."""
        sparsity, heads, pool = self.store.sparsity, self.heads[at] * self.group, self.store.pools[self.layer][at]
        members = heads[:, None] + torch.arange(self.group, device=q.device)
        bounds = page_bounds(q, pool, batch, heads=heads, group=self.group, scale=self.scale, cap=self.cap)
        lse = q.new_zeros(q.shape[:2])
        self._read(q, out, at, batch, lists, lse)
        bound = error_bound(bounds, lse[:, members], lists, pool.page).amax(2)  # [requests, heads of the pool]
        first = bound
        if sparsity.max_error is not None:
            assert sparsity.budget_pages is not None
            for pages in (WIDER * sparsity.budget_pages, most):
                over = bound > sparsity.max_error
                if not over.any():
                    break
                lists = _wider(lists, over, bounds.amax(2), batch, pages, pool.page)
                self.tally.widened(over, pages >= most, lists, pool.page)
                # Heads within the limit have empty lists here: they cost nothing and keep what they have.
                again, more = torch.zeros_like(out), torch.zeros_like(lse)
                self._read(q, again, at, batch, lists, more)
                redone = torch.zeros_like(lse, dtype=torch.bool)
                redone[:, members] = over[:, :, None].expand(-1, -1, self.group)
                out[redone], lse[redone] = again[redone], more[redone]
                now = error_bound(bounds, lse[:, members], lists, pool.page).amax(2)
                bound = torch.where(over, now, bound)
        self.tally.bounded(first, bound)


def _rows(lists: Pattern, rows: Tensor) -> Pattern:
    """Some rows of lists, in the order given."""
    offsets = lists.row_offsets()
    counts = offsets.diff()[rows]
    starts = offsets[rows]
    new = torch.cat([offsets.new_zeros(1), counts.cumsum(0)])
    places = torch.arange(int(new[-1]), device=rows.device) + (starts - new[:-1]).repeat_interleave(counts)
    return Pattern(new, lists.indices.flatten()[places], (rows.numel(), lists.shape[1]), (1, 1))


def _wider(lists: Pattern, over: Tensor, bounds: Tensor, batch: Batch, count: int, page: int) -> Pattern:
    """Lists of the `count` pages with the largest bounds for the heads in `over`, of none for the others."""
    mask = torch.zeros(*over.shape, lists.shape[1], dtype=torch.bool, device=over.device)
    for request in over.any(1).nonzero()[:, 0].tolist():
        pages = -(-int(batch.lengths[request]) // page)
        some = slice(request, request + 1)
        if count >= pages:
            mask[request, :, :pages] = True
        else:
            one = Batch(batch.offsets.new_tensor([0, 1]), batch.lengths[some], batch.table[some])
            chosen = ops.page_choose(bounds[some], one, count, page=page)
            mask[request].scatter_(1, chosen[0].long(), True)
    return Pattern.from_tile_mask(mask.logical_and_(over[:, :, None]).flatten(0, 1), (1, 1))

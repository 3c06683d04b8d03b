"""What attention read of what it could have read: counted, so that a saving is a fact and not a hope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from gossamer.pattern import Pattern
from gossamer.serving.sparsity import Part, View


@dataclass
class Tally:
    """Counts since it was made. A key counts once for each key head that reads it, for each token.

    Attributes:
        decode_keys, decode_read: keys before the tokens that were decoded, in the layers that these ran, and those of
            them that were read.
        prefill_keys, prefill_read: the same for prompts.
        scored: pages of which a score was computed. chosen: times that a request chose pages, in one layer.
        sparse_steps: times that a layer decoded with less than all pages, for one request.
        heads_bounded, worst_bound, mean_bound: heads whose error was bounded, and the bounds before anything was done.
        heads_widened, heads_dense: heads that read more pages than the budget, and all, for their bound's sake.
        worst_kept: the largest bound of what was returned.
    """

    decode_keys: int = 0
    decode_read: int = 0
    prefill_keys: int = 0
    prefill_read: int = 0
    scored: int = 0
    chosen: int = 0
    sparse_steps: int = 0
    heads_bounded: int = 0
    heads_widened: int = 0
    heads_dense: int = 0
    worst_bound: float = 0.0
    worst_kept: float = 0.0
    sum_of_bounds: float = 0.0

    @property
    def mean_bound(self) -> float:
        return self.sum_of_bounds / max(self.heads_bounded, 1)

    @classmethod
    def sum(cls, tallies: Sequence[Tally]) -> Tally:
        """That of several processes, each of which has some of the heads.

        >>> str(Tally.sum([Tally(decode_keys=10, decode_read=5)] * 2))
        'decoding read 50.0% of 20 keys'
        """
        largest = ("worst_bound", "worst_kept")
        return cls(
            **{
                each.name: (max if each.name in largest else sum)(getattr(tally, each.name) for tally in tallies)
                for each in fields(cls)
            }
        )

    def decode(self, part: Part, lengths: Sequence[int]) -> None:
        """Heads read all that they see, in texts of so many tokens."""
        heads = part.heads.numel()
        for length in lengths:
            self.decode_keys += heads * length
            self.decode_read += heads * seen(part.view, length)

    def chose(self, part: Part, lengths: Sequence[int], lists: Pattern | None, refreshed: int, page: int) -> None:
        """Heads read the pages of lists."""
        if lists is None:
            return self.decode(part, lengths)
        heads, rows = part.heads.numel(), lists.shape[0]
        counts = lists.row_offsets().diff().view(len(lengths), -1).sum(1).tolist()
        each = rows // len(lengths) // heads  # 1, or the query heads of a group
        for length, count in zip(lengths, counts, strict=True):
            self.decode_keys += heads * length * each
            # The newest page is always read, and is not full.
            self.decode_read += count * page - heads * each * (-length % page)
            self.sparse_steps += part.first and count < heads * each * -(-length // page)
        self.chosen += refreshed if part.first else 0
        self.scored += refreshed * heads * max(-(-length // page) for length in lengths)

    def prefill(self, part: Part, lengths: Sequence[int], counts: Sequence[int], lists: Pattern | None = None) -> None:
        """Heads read all that they see for each of the last `counts` tokens, or what is listed, a page for a block."""
        heads = part.heads.numel()
        if lists is not None:
            page, entries, row = lists.tile[0], lists.row_offsets().tolist(), 0
            for length, count in zip(lengths, counts, strict=True):
                self.prefill_keys += heads * (triangle(length) - triangle(length - count))
                if (length - count) % page:  # such blocks read all, and pages of two blocks overlap
                    self.prefill_read += heads * (triangle(length) - triangle(length - count))
                    row += heads * -(-count // page)
                    continue
                for begin in range(0, count, page):
                    tokens, pages = min(page, count - begin), entries[row + heads] - entries[row]
                    # Of a block's own page the tokens before each are read; it is in every list.
                    self.prefill_read += tokens * page * (pages - heads) + heads * triangle(tokens)
                    row += heads
            return
        for length, count in zip(lengths, counts, strict=True):
            before = length - count
            self.prefill_keys += heads * (triangle(length) - triangle(before))
            self.prefill_read += heads * (seen_by_all(part.view, length) - seen_by_all(part.view, before))

    def widened(self, over: Tensor, all_pages: bool, lists: Pattern, page: int) -> None:
        count = int(over.sum())
        self.heads_widened += 0 if all_pages else count
        self.heads_dense += count if all_pages else 0
        self.decode_read += int(lists.row_offsets()[-1]) * page

    def bounded(self, first: Tensor, kept: Tensor) -> None:
        self.heads_bounded += first.numel()
        self.sum_of_bounds += float(first.sum())
        self.worst_bound = max(self.worst_bound, float(first.max()))
        self.worst_kept = max(self.worst_kept, float(kept.max()))

    def __str__(self) -> str:
        """
        >>> print(Tally(decode_keys=1000, decode_read=100))
        decoding read 10.0% of 1,000 keys
        """
        said = []
        for name, keys, read in (
            ("prefill", self.prefill_keys, self.prefill_read),
            ("decoding", self.decode_keys, self.decode_read),
        ):
            if keys:
                said.append(f"{name} read {read / keys:.1%} of {keys:,} keys")
        if self.chosen:
            said.append(f"pages were chosen {self.chosen:,} times from {self.scored:,} scores")
        if self.heads_bounded:
            said.append(
                f"error bound {self.mean_bound:.2g} on average, {self.worst_bound:.2g} at most; kept below "
                f"{self.worst_kept:.2g} by {self.heads_widened:,} wider and {self.heads_dense:,} dense reads"
            )
        return "; ".join(said) or "nothing was read"


def seen(view: View, length: int) -> int:
    """Keys that the last of `length` tokens sees."""
    if view.window is None:
        return length
    return min(length, view.window + view.sink)


def triangle(length: int) -> int:
    return length * (length + 1) // 2


def seen_by_all(view: View, length: int) -> int:
    """Keys that `length` tokens see, added up."""
    if view.window is None or length <= view.window + view.sink:
        return triangle(length)
    most = view.window + view.sink
    return triangle(most) + (length - most) * most

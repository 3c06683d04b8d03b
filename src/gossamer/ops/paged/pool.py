"""Pages of keys and values, and who has which of them.

    PagePool   memory: for each of its heads `count` pages of `page` tokens, and what is kept to judge a page by
    Batch      structure: the new tokens of each request, how many it has then, and the pages that they lie in

Keys are transposed in a page, for a product with a query then runs along tokens without a sum across a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import numbers
from gossamer.ops.checks import described

Stored = Literal["float32", "bfloat16", "float16", "int8", "int4"]
PAGE = 64
STRETCH = 16
BITS: dict[Stored, int] = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, eq=False)
class PagePool:
    """Memory of keys and values, a page at a time; written by `page_append` only.

    Attributes:
        keys: [count, heads, width, page]; as codes uint8[count, heads, planes, width / 8, page, 4], four bits of two
            coordinates in a byte: one plane for int4, for int8 one of the upper and one of the lower bits.
        values: [count, heads, page, width], a dtype or uint8 codes (int4: two in a byte, [..., width / 2]).
        key_scales, value_scales: bfloat16[count, heads, 2, page], scale and zero of each token; None without codes.
        extremes: bfloat16[count, heads, n, 2, width], largest and least coordinates of each of n stretches, or None.
        moments: the same with mean and variance, or None.
        sketches: uint8[count, heads, 1, width / 8, page, 4], a copy of every key in four bits, with sketch_scales as
            key_scales; or None, as where keys are codes.
        stored: how numbers are stored.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    extremes: Tensor | None
    moments: Tensor | None
    sketches: Tensor | None
    sketch_scales: Tensor | None
    stored: Stored

    @classmethod
    @torch.inference_mode(False)  # it is written for as long as it is there, in whatever mode
    def allocate(
        cls,
        count: int,
        heads: int,
        width: int,
        *,
        stored: Stored = "float32",
        page: int = PAGE,
        extremes: int | None = STRETCH,
        moments: int | None = PAGE,
        sketched: bool = False,
        device: torch.device | str | None = None,
    ) -> PagePool:
        """Memory for `count` pages, which holds nothing yet.

        Args:
            heads: key heads. width: of a head, a multiple of 16 (for int4 of 32), at most 256.
            stored: "float32", "bfloat16", "float16"; "int8" or "int4" with a scale and a zero for each token and head.
            page: tokens of a page, a multiple of 32, at most 256.
            extremes, moments: tokens of a stretch that is summarized, a divisor of page or more than it, which is all
                of it; None: no such summaries.
            sketched: have every key in four bits, for `page_scores(by="keys")`: a copy of keys that are no codes.

        Raises:
            ValueError: naming the argument.

        >>> PagePool.allocate(4, 2, 64, stored="int8").nbytes
        79872
        """
        for name, value in (("count", count), ("heads", heads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")
        if stored not in get_args(Stored):
            raise ValueError(f"stored must be one of {', '.join(get_args(Stored))}, got {stored!r}")
        step = 32 if stored == "int4" else 16
        if width % step or not 0 < width <= 256:
            raise ValueError(f"width must be a multiple of {step} up to 256 with stored={stored!r}, got {width}")
        if page % 32 or not 0 < page <= 256:
            raise ValueError(f"page must be a multiple of 32 up to 256, got {page}")
        if not isinstance(sketched, bool):
            raise ValueError(f"sketched must be True or False, got {sketched!r}")
        for name, stretch in (("extremes", extremes), ("moments", moments)):
            if stretch is not None and (stretch < 1 or page % min(stretch, page)):
                raise ValueError(f"{name} must divide the page of {page} tokens, got {stretch}")
        half, dtype = 1, torch.uint8
        if stored == "int4":
            half = 2
        elif stored != "int8":
            dtype = getattr(torch, stored)

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty((count, heads, *shape), dtype=dtype, device=device)

        def brief(*shape: int) -> Tensor:
            return empty(*shape, dtype=torch.bfloat16)

        coded = dtype == torch.uint8
        scales = [brief(2, page) if coded else None for _ in range(2)]
        kept = [brief(max(page // stretch, 1), 2, width) if stretch else None for stretch in (extremes, moments)]
        keys = empty(2 // half, width // 8, page, 4) if coded else empty(width, page)
        copied = sketched and not coded
        codes = empty(1, width // 8, page, 4, dtype=torch.uint8) if copied else None
        codes_scales = brief(2, page) if copied else None
        values = empty(page, width // half)
        return cls(keys, values, scales[0], scales[1], kept[0], kept[1], codes, codes_scales, stored)

    @property
    def count(self) -> int:
        return self.values.shape[0]

    @property
    def heads(self) -> int:
        return self.values.shape[1]

    @property
    def page(self) -> int:
        return self.values.shape[2]

    @property
    def width(self) -> int:
        return self.values.shape[3] * (2 if self.stored == "int4" else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(each.nbytes for each in self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """All of it: what is copied with a page."""
        every = (*self.numbers[:4], self.extremes, self.moments, self.sketches, self.sketch_scales)
        return [each for each in every if each is not None]

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Stored]:
        """Keys, values, their scales and how they are stored, as ops take them."""
        return self.keys, self.values, self.key_scales, self.value_scales, self.stored

    @property
    def key_codes(self) -> tuple[Tensor | None, Tensor | None]:
        """What ranks keys, uint8[count, heads, planes, width / 8, page, 4], and its scales: keys that are codes, or
        else their sketches.
        """
        return (self.sketches, self.sketch_scales) if self.key_scales is None else (self.keys, self.key_scales)

    def read_keys(self, pages: Tensor) -> Tensor:
        """The keys of some pages, as attention reads them: float32[pages, heads, page, width].

        Args:
            pages: integers [n].
        """
        chosen = pages.long()
        scales = None if self.key_scales is None else self.key_scales[chosen]
        return numbers(self.keys[chosen], scales, self.stored, keys=True)


def page_bytes(
    heads: int,
    width: int,
    stored: Stored,
    *,
    page: int = PAGE,
    extremes: int | None = STRETCH,
    moments: int | None = PAGE,
    sketched: bool = False,
) -> int:
    """Bytes of one page of a pool.

    >>> page_bytes(2, 64, "int8") * 4 == PagePool.allocate(4, 2, 64, stored="int8").nbytes
    True
    """
    payload = 2 * width * page * BITS[stored] // 8
    scales = 2 * 2 * page * 2 if BITS[stored] < 16 else 0
    summaries = sum(ranking_bytes(width, "extremes", page=page, stretch=each) for each in (extremes, moments) if each)
    sketches = ranking_bytes(width, "keys", page=page) if sketched and not scales else 0
    return heads * (payload + scales + summaries + sketches)


def ranking_bytes(width: int, by: str, *, page: int = PAGE, stretch: int = STRETCH) -> int:
    """Bytes that are read of one head of a page to rank it `by` what `page_scores` takes, however numbers are stored.

    >>> ranking_bytes(64, "keys"), ranking_bytes(64, "extremes")
    (2304, 1024)
    """
    return page * (width // 2 + 2 * 2) if by == "keys" else max(page // stretch, 1) * 2 * width * 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests that are worked on together, of any lengths.

    Attributes:
        offsets: int64[requests + 1]: request r has the new tokens [offsets[r], offsets[r + 1]) of those given.
        lengths: int64[requests]: tokens that it has with these.
        table: int32[requests, most]: its tokens [i * page, (i + 1) * page) lie in page table[r, i]; what is beyond its
            length, or seen by no query, may be anything.
    """

    offsets: Tensor
    lengths: Tensor
    table: Tensor

    def __post_init__(self) -> None:
        for name, value, dtype, dims in (
            ("offsets", self.offsets, torch.int64, 1),
            ("lengths", self.lengths, torch.int64, 1),
            ("table", self.table, torch.int32, 2),
        ):
            if not isinstance(value, Tensor) or value.dtype != dtype or value.dim() != dims:
                raise TypeError(f"{name} must be a {dtype} tensor of {dims} dimensions, got {described(value)}")

    @classmethod
    def of(cls, counts: list[int], lengths: list[int], pages: list[list[int]], device: Any = None) -> Batch:
        """From plain numbers: new tokens, tokens then, and pages of each request.

        >>> Batch.of([1, 3], [65, 3], [[7, 2], [5]]).table.tolist()
        [[7, 2], [5, -1]]
        """
        if not len(counts) == len(lengths) == len(pages):
            raise ValueError(
                f"counts, lengths and pages must be of one length, got {len(counts)}, {len(lengths)}, {len(pages)}"
            )
        most = max(map(len, pages), default=0)
        table = torch.tensor([[*row, *[-1] * (most - len(row))] for row in pages], dtype=torch.int32, device=device)
        offsets = torch.tensor([0, *counts], device=device).cumsum(0)
        return cls(offsets, torch.tensor(lengths, dtype=torch.int64, device=device), table.view(len(pages), most))

    @property
    def requests(self) -> int:
        return self.lengths.numel()

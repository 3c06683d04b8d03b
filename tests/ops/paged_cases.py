"""Requests whose keys and values lie in pages, and how far attention over them may be off."""

import torch

from gossamer.ops import Batch, PagePool, page_append
from gossamer.testing import gamma, unit_roundoff

STORED = ("float32", "bfloat16", "float16", "int8", "int4")


def filled(lengths, heads, width, *, stored="float32", page=64, spare=3, **options):
    """A pool with the requests' keys and values in pages in any order, their batch, and keys and values themselves."""
    pages = [-(-length // page) for length in lengths]
    order = torch.randperm(sum(pages) + spare).tolist()
    pool = PagePool.allocate(len(order), heads, width, stored=stored, page=page, **options)
    batch = Batch.of(lengths, lengths, [[order.pop() for _ in range(n)] for n in pages])
    keys, values = torch.randn(sum(lengths), heads, width), torch.randn(sum(lengths), heads, width)
    page_append(keys, values, pool, batch)
    return pool, batch, keys, values


def multiplies_bfloat16(isa, stored):
    """Whether queries and weights are rounded to bfloat16 too."""
    return stored == "bfloat16" and isa in ("avx512_bf16", "avx512_amx")


def error_bound(q, keys, values, scale, terms, weight=0.0):
    """Scores err by a rounded product; exp makes that a share of each weight, which may be rounded by `weight` of
    itself; a weighted mean errs by all of it."""
    width = q.shape[-1]
    most = (q.abs().amax((0, 1)) * keys.abs().amax((0, 1))).sum() * scale
    score = gamma(width + 4, torch.float32) * float(most) + 4 * unit_roundoff(torch.float32) * float(most)
    share = 2 * (torch.expm1(torch.tensor(2 * score)).item() + gamma(terms + 8, torch.float32) + 2**-21 + weight)
    return share * values.abs().max()

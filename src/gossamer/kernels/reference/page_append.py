"""New keys and values into their pages: the oracle, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.reference._pages import check_heads, check_requests, in_planes, numbers, tokens_of
from gossamer.kernels.reference._slots import demand


def page_append(
    keys: Tensor, values: Tensor, heads: Tensor, pool_keys: Tensor, pool_values: Tensor, key_scales: Tensor | None,
    value_scales: Tensor | None, stored: str, extremes: Tensor | None, moments: Tensor | None,
    sketches: Tensor | None, sketch_scales: Tensor | None, offsets: Tensor, lengths: Tensor, table: Tensor,
) -> None:  # fmt: skip
    """keys, values float32[tokens, key heads, width] into pool_keys[pages, heads, width, page] and
    pool_values[pages, heads, page, width], head h of which is the model's key head heads[h].

    Request r has the tokens offsets[r] to offsets[r + 1], the last of the lengths[r] it has then; its tokens
    [i * page, (i + 1) * page) lie in page table[r, i]. int8 and int4 store codes with scales[pages, heads, 2, page],
    of values in rows as numbers are, of keys in pool_keys[pages, heads, planes, width / 8, page, 4] as `in_planes` has
    them.
    extremes and moments [pages, heads, n, 2, width] get the largest and least, and the mean and variance, of each of n
    stretches of a page that changed. sketches uint8[pages, heads, 1, width / 8, page, 4] get each key in four bits,
    with sketch_scales [pages, heads, 2, page].
    """
    count, page = len(pool_keys), pool_values.shape[2]
    check_requests(offsets, lengths, table, len(keys), page)
    check_heads(heads, pool_values.shape[1], keys.shape[1])
    for r, first, end, place in tokens_of(offsets, lengths):
        if first == end:
            continue
        at = torch.arange(place, place + end - first, device=pool_keys.device)
        pages = table[r].long()[at // page]
        demand(((pages >= 0) & (pages < count)).all(), f"table must name pages below {count}")
        place_of, (new_k, new_v) = at % page, (x[first:end][:, heads] for x in (keys, values))
        if key_scales is None:
            pool_keys[pages, :, :, place_of] = new_k.to(pool_keys.dtype)
        for codes, scales in ((pool_keys, key_scales), (sketches, sketch_scales)):
            if codes is not None and scales is not None:
                planes = codes.shape[2]
                of_keys = _coded_into(scales, new_k, 16**planes - 1, pages, place_of)
                codes[pages, :, :, :, place_of] = in_planes(of_keys, planes)
        if value_scales is not None:
            new_v = _coded_into(value_scales, new_v, 255 if stored == "int8" else 15, pages, place_of)
        if stored == "int4":
            low, high = new_v.chunk(2, -1)
            new_v = low | high << 4
        pool_values[pages, :, place_of] = new_v.to(pool_values.dtype)
        for summaries, of in ((extremes, _extremes), (moments, _moments)):
            if summaries is not None:
                whole = pool_keys, key_scales, stored, table[r].long(), place, place + end - first, page
                _summarize(summaries, of, *whole)


def coded(x: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes of x[..., width], their scale and zero, bfloat16: x is within half a scale of code * scale + zero."""
    low, high = x.amin(-1), x.amax(-1)
    zero = round_bfloat16(low, up=False)
    scale = round_bfloat16((high - zero.float()) / most, up=True)
    safe = torch.where(scale > 0, scale.float(), 1)[..., None]
    codes = torch.where((scale > 0)[..., None], ((x - zero.float()[..., None]) / safe).round(), 0)
    return codes.nan_to_num().clamp(0, most).to(torch.uint8), scale, zero


def round_bfloat16(x: Tensor, *, up: bool) -> Tensor:
    """The next bfloat16 that is not less (or not more) than x."""
    near = x.bfloat16()
    bits = near.view(torch.int16).int()
    wrong = near.float() < x if up else near.float() > x
    away = (near >= 0) == up  # from zero
    at_zero = near == 0
    step = torch.where(away, 1, -1)
    moved = torch.where(at_zero, torch.tensor(1 if up else -32767, device=x.device), bits + step)
    return torch.where(wrong, moved, bits).to(torch.int16).view(torch.bfloat16)


def _coded_into(scales: Tensor, x: Tensor, most: int, pages: Tensor, at: Tensor) -> Tensor:
    """Codes of x[tokens, heads, width], whose scales and zeros go to the places `at` of `pages`."""
    codes, scales[pages, :, 0, at], scales[pages, :, 1, at] = coded(x, most)
    return codes


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    return round_bfloat16(x.amax(-2), up=True), round_bfloat16(x.amin(-2), up=False)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(-2).bfloat16(), x.var(-2, correction=0).bfloat16()


def _summarize(
    summaries: Tensor, of: object, keys: Tensor, scales: Tensor | None, stored: str, table: Tensor, begin: int,
    end: int, page: int,
) -> None:  # fmt: skip
    assert callable(of)
    stretch = page // summaries.shape[2]
    for j in range(begin // stretch, -(-end // stretch)):
        p = int(table[j * stretch // page])
        x = numbers(keys[p], None if scales is None else scales[p], stored, keys=True)
        from_ = j * stretch % page
        x = x[:, from_ : from_ + min(stretch, end - j * stretch)]
        first, second = of(x)
        summaries[p, :, j % (page // stretch), 0], summaries[p, :, j % (page // stretch), 1] = first, second

"""Rewiring rows of fixed fan-in: the weakest connections go, others come. Plain torch, for any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gossamer.kernels.counter import draws, draws_below, row_keys
from gossamer.kernels.reference._slots import demand

BLOCK_ELEMENTS = 1 << 20  # connections looked at together
PROTECTED = 2**32 - 1  # above every magnitude
# Keep the streams of one seed apart: of first connections, of new ones, of new values.
DRAWING, GROWING, STARTING = 0x6472617764726177, 0x67726F7767726F77, 0x7374617274737461


def fan_in_rewire(
    values: Tensor, indices: Tensor, states: list[Tensor], ages: Tensor | None, candidates: Tensor | None,
    scores: Tensor | None, cols: int, group: int, drop: int, threshold: float, everywhere: bool, avoid_dropped: bool,
    min_age: int, init: float, seed: int, step: int, first: int,
) -> Tensor:  # fmt: skip
    """values[labels, k], indices[ceil(labels / group), k] and what moves with them are written; how many went: int64[].

    drop: how many connections of each row of indices go, or of all rows together if `everywhere`; -1: all that are
    weaker than `threshold`. The weakest go, by |value|, of a group by the mean; equal ones in order of slot. No more go
    than `cols` has free inputs (without `avoid_dropped` those that go are free too) or a row has candidates.
    """

    def rewire(part: slice, keys: Tensor, m: Tensor) -> None:
        _rewire(values, indices, states, ages, candidates, scores, cols, group, avoid_dropped, init, seed, step, first,
                part, keys, m, int(m.max()))  # fmt: skip

    return in_blocks(
        rewire, values, indices, ages, candidates, cols, group, drop, threshold, everywhere, avoid_dropped, min_age
    )


def in_blocks(
    rewire: Callable[[slice, Tensor, Tensor], None], values: Tensor, indices: Tensor, ages: Tensor | None,
    candidates: Tensor | None, cols: int, group: int, drop: int, threshold: float, everywhere: bool,
    avoid_dropped: bool, min_age: int,
) -> Tensor:  # fmt: skip
    """What `fan_in_rewire` says of its arguments, each block of rows by a call of `rewire` if anything goes there.

    Args:
        rewire: gets the rows of indices, keys int64[rows, k] of which the smallest go, and m int64[rows]: how many.
    """
    rows, k = indices.shape
    for part in _blocks(rows, k * group):
        row = indices[part].to(torch.int64)
        _check_rows(row, cols, "indices")
        if candidates is not None:
            other = candidates[part].to(torch.int64)
            _check_rows(other, cols, "candidates")
            both = torch.cat([row, other], 1).sort(1).values
            demand((both[:, 1:] > both[:, :-1]).all(), "candidates must not be connected already")
    cut = torch.tensor(threshold, dtype=torch.float32, device="cpu").view(torch.int32).item() if threshold > 0 else 0
    equals: Tensor | int = 0
    if everywhere and drop >= 0:
        cut, equals = cut_of_all(values, ages, group, drop, min_age)
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for part in _blocks(rows, k * group):
        keys = keys_of(values, ages, group, min_age, part)
        free = (keys != PROTECTED).sum(1)
        if everywhere or drop < 0:
            equal = (keys == cut).sum(1)
            before = equal.cumsum(0) - equal
            taken = (equals - before).clamp(min=0).minimum(equal)
            equals = equals - int(equal.sum()) if int(equals) > int(equal.sum()) else 0
            m = (keys < cut).sum(1) + taken
        else:
            m = free.clamp(max=drop)
        m = m.clamp(max=cols - k if avoid_dropped else k)
        if candidates is not None:
            m = m.clamp(max=candidates.shape[1])
        if ages is not None:
            ages[part] = ages[part].to(torch.int16).add(1).clamp(max=255).to(torch.uint8)
        if bool(m.any()):
            rewire(part, keys, m)
        total += m.sum()
    return total


def _rewire(
    values: Tensor, indices: Tensor, states: list[Tensor], ages: Tensor | None, candidates: Tensor | None,
    scores: Tensor | None, cols: int, group: int, avoid_dropped: bool, init: float, seed: int, step: int, first: int,
    part: slice, keys: Tensor, m: Tensor, width: int,
) -> None:  # fmt: skip
    """The rows of one block: the m[r] smallest keys of row r go."""
    k = keys.shape[1]
    device, old = keys.device, indices[part].to(torch.int64)
    slot = torch.arange(k, device=device)
    by_key = keys.argsort(dim=1, stable=True)
    goes = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, by_key, slot < m[:, None])
    # What is absent is `cols`, which sorts last.
    if candidates is not None and scores is not None:
        bits = scores[part].view(torch.int32).to(torch.int64) & 0x7FFFFFFF
        order = torch.where(bits > 0x7F800000, -1, bits).argsort(dim=1, descending=True, stable=True)[:, :width]
        fresh = candidates[part].to(torch.int64).gather(1, order)
        fresh = torch.where(slot[:width] < m[:, None], fresh, cols)
    else:
        numbers = torch.arange(part.start, part.stop, device=device) + first // group
        taken = old if avoid_dropped else torch.where(goes, cols + k, old).sort(1).values
        count = k - (0 if avoid_dropped else m)
        fresh = draw_ranks(row_keys(seed ^ GROWING, step, numbers), cols - count, m, width)
        fresh = torch.where(slot[:width] < m[:, None], ranks_to_numbers(fresh.clamp(max=cols), taken), cols)
    kept = torch.where(goes, cols, old)
    columns, source = torch.cat([kept, fresh], 1).sort(1)
    columns, source = columns[:, :k], source[:, :k]
    new = source >= k
    source = torch.where(new, 0, source)
    indices[part] = columns.to(indices.dtype)
    labels = slice(part.start * group, min(part.stop * group, values.shape[0]))
    row = torch.arange(labels.stop - labels.start, device=device) // group
    new_of, source_of = new[row], source[row]
    start = torch.zeros((), dtype=torch.float32, device=device)
    if init:
        names = torch.arange(labels.start, labels.stop, device=device) + first
        share = draws(row_keys(seed ^ STARTING, step, names), slot) >> 40 & 0xFFFFFF
        start = (share - (1 << 23)).float() * 2.0**-23 * torch.tensor(init, dtype=torch.float32, device=device)
    values[labels] = torch.where(new_of, start.to(values.dtype), values[labels].gather(1, source_of))
    for state in states:
        state[labels] = torch.where(new_of, 0.0, state[labels].gather(1, source_of))
    if ages is not None:
        ages[part] = torch.where(new, 0, ages[part].gather(1, source))


def fan_in_draw(out: Tensor, indices: Tensor | None, cols: int, seed: int, step: int, first: int) -> None:
    """out[rows, k]: k of `cols` columns that indices[rows, any] does not have, ascending, every set as likely.

    The rows are those with the numbers first + 0, first + 1, ...; each row of `indices` ascends.
    """
    rows, k = out.shape
    for part in _blocks(rows, k):
        numbers = torch.arange(part.start, part.stop, device=out.device) + first
        m = torch.full_like(numbers, k)
        nothing = out.new_empty((len(numbers), 0), dtype=torch.int64)
        busy = nothing if indices is None else indices[part].to(torch.int64)
        _check_rows(busy, cols, "indices")
        ranks = draw_ranks(row_keys(seed ^ DRAWING, step, numbers), cols - busy.shape[1], m, k)
        out[part] = ranks_to_numbers(ranks, busy).to(out.dtype)


def ranks_to_numbers(ranks: Tensor, taken: Tensor) -> Tensor:
    """Ranks among the numbers that the same row of `taken`, ascending, does not have: the numbers themselves."""
    return ranks + torch.searchsorted(taken - torch.arange(taken.shape[1], device=taken.device), ranks, right=True)


def draw_ranks(keys: Tensor, n: Tensor | int, m: Tensor, width: int) -> Tensor:
    """int64[rows, width]: m[r] of the numbers below n, ascending, then large ones; Floyd's algorithm."""
    n = torch.as_tensor(n, device=keys.device).expand_as(m)
    out = torch.full((keys.numel(), width), torch.iinfo(torch.int64).max, dtype=torch.int64, device=keys.device)
    for j in range(width):
        most = n - m + j
        x = draws_below(keys, j, (most + 1).clamp(min=1))
        x = torch.where((out[:, :j] == x[:, None]).any(1), most, x)
        out[:, j] = torch.where(j < m, x, out[:, j])
    return out.sort(1).values


def keys_of(values: Tensor, ages: Tensor | None, group: int, min_age: int, part: slice) -> Tensor:
    """int64[rows, k]: the magnitudes of these rows of indices as bits, which order as they do; of a group the mean."""
    labels, k = values.shape
    mine = values[part.start * group : min(part.stop * group, labels)].float().abs()
    if group > 1:
        rows = part.stop - part.start
        padded = torch.nn.functional.pad(mine, (0, 0, 0, rows * group - mine.shape[0])).view(rows, group, k)
        total = padded[:, 0].clone()
        for member in range(1, group):
            total += padded[:, member]
        members = (labels - torch.arange(part.start, part.stop, device=values.device) * group).clamp(max=group)
        mine = total / members[:, None]
    keys = mine.view(torch.int32).to(torch.int64)
    return keys if ages is None else torch.where(ages[part].to(torch.int64) < min_age, PROTECTED, keys)


def cut_of_all(
    values: Tensor, ages: Tensor | None, group: int, drop: int, min_age: int,
    add: Callable[[Tensor], None] = lambda counts: None,
) -> tuple[int, int]:  # fmt: skip
    """The key of the last of the `drop` weakest connections of all, and how many that have it go.

    Args:
        add: replaces counts, int64[n], by their sum over the processes that divide the labels.
    """
    rows, prefix, left = -(-values.shape[0] // group), 0, drop
    for shift, bits in ((20, 11), (9, 11), (0, 9)):
        counts = torch.zeros(1 << bits, dtype=torch.int64, device=values.device)
        for part in _blocks(rows, values.shape[1] * group):
            keys = keys_of(values, ages, group, min_age, part)
            here = (keys != PROTECTED) & (keys >> (shift + bits) == prefix >> (shift + bits))
            counts += (keys[here] >> shift & ((1 << bits) - 1)).bincount(minlength=1 << bits)
        add(counts)
        if shift == 20:
            left = min(left, int(counts.sum()))
            if left == 0:
                return 0, 0
        bucket = int((counts.cumsum(0) < left).sum())
        left -= int(counts[:bucket].sum())
        prefix |= bucket << shift
    return prefix, left


def count_keys(values: Tensor, ages: Tensor | None, group: int, min_age: int, cut: int) -> Tensor:
    """int64[2]: how many connections have a key below `cut`, and how many have that key."""
    found = torch.zeros(2, dtype=torch.int64, device=values.device)
    for part in _blocks(-(-values.shape[0] // group), values.shape[1] * group):
        keys = keys_of(values, ages, group, min_age, part)
        found += torch.stack([(keys < cut).sum(), (keys == cut).sum()])
    return found


def _blocks(rows: int, elements: int) -> Iterator[slice]:
    step = max(BLOCK_ELEMENTS // max(elements, 1), 1)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def _check_rows(rows: Tensor, bound: int, name: str) -> None:
    inside = ((rows >= 0) & (rows < bound)).all() & (rows[:, 1:] > rows[:, :-1]).all()
    demand(inside, f"{name} must ascend in each row and be at least 0 and below {bound}")

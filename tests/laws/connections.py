"""What drawing and rewiring connections mean, in plain Python: one row, one number, one choice after the other."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15
DRAWING, GROWING = 0x6472617764726177, 0x67726F7767726F77


def mixed(x: int) -> int:
    x = (x + GAMMA) % WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB % WORD
    return x ^ x >> 31


def row_key(seed: int, purpose: int, step: int, row: int) -> int:
    return mixed(mixed(mixed((seed ^ purpose) % WORD) ^ step) + row)


def drawn(key: int, free: list[int], m: int) -> list[int]:
    """m of the free columns, by Floyd's algorithm."""
    ranks: set[int] = set()
    for j in range(m):
        most = len(free) - m + j
        rank = mixed((key + j * GAMMA) % WORD) * (most + 1) // WORD
        ranks.add(most if rank in ranks else rank)
    return sorted(free[rank] for rank in ranks)


def without(cols: int, taken: list[int]) -> list[int]:
    return [column for column in range(cols) if column not in taken]


def drawn_rows(out: Tensor, taken: Tensor, cols: int, seed: int, step: int, first: int) -> list[Tensor]:
    rows = [
        drawn(row_key(seed, DRAWING, step, first + r), without(cols, mine), out.shape[1])
        for r, mine in enumerate(taken.tolist())
    ]
    return [torch.tensor(rows, dtype=torch.int64).view(out.shape).to(out.dtype)]


def rewired_rows(
    values: Tensor, indices: Tensor, states: list[Tensor], ages: Tensor, candidates: Tensor | None,
    scores: Tensor | None,
    cols: int, group: int, drop: int, threshold: float, everywhere: bool, avoid: bool, min_age: int, init: float,
    seed: int, step: int, first: int,
) -> list[Tensor]:  # fmt: skip
    """The number that went, then values, indices and ages: of labels that share no indices and have no states."""
    went, new_values, new_indices, new_ages = 0, [], [], []
    every = [(abs(v), r, j) for r, row in enumerate(values.tolist()) for j, v in enumerate(row)]
    weakest = [each for each in every if ages[each[1:]] >= min_age]
    if drop < 0:
        going = [each for each in weakest if each[0] < threshold]
    elif everywhere:
        going = sorted(weakest)[:drop]
    else:
        going = [each for r in range(len(values)) for each in sorted(w for w in weakest if w[1] == r)[:drop]]
    for r, (row, columns) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
        mine = sorted(each for each in going if each[1] == r)
        room = cols - len(columns) if avoid else len(columns)
        if candidates is not None and scores is not None:
            best = sorted(range(candidates.shape[1]), key=lambda c: -abs(float(scores[r, c])))
            mine = mine[: min(room, len(best))]
            fresh = [int(candidates[r, c]) for c in best[: len(mine)]]
        else:
            mine = mine[:room]
            gone = {j for _, _, j in mine}
            taken = columns if avoid else [c for j, c in enumerate(columns) if j not in gone]
            fresh = drawn(row_key(seed, GROWING, step, first + r), without(cols, taken), len(mine))
        gone = {j for _, _, j in mine}
        slots = enumerate(zip(columns, row, ages[r].tolist(), strict=True))
        kept = [(c, v, min(a + 1, 255)) for j, (c, v, a) in slots if j not in gone]
        after = sorted(kept + [(c, 0.0, 0) for c in fresh])
        went += len(mine)
        new_indices.append([c for c, _, _ in after])
        new_values.append([v for _, v, _ in after])
        new_ages.append([a for _, _, a in after])
    shape = values.shape
    return [
        torch.tensor(went),
        torch.tensor(new_values, dtype=values.dtype).view(shape),
        torch.tensor(new_indices, dtype=torch.int64).view(shape).to(indices.dtype),
        torch.tensor(new_ages, dtype=torch.uint8).view(shape),
    ]


def best_labels(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, group: int, best: int, first: int, offsets: Tensor,
    ids: Tensor, always: Tensor,
) -> list[Tensor]:  # fmt: skip
    """(scores, ids)[batch, best]."""
    scores, found = [], []
    for b, row in enumerate(x.double()):
        never = {*always.tolist(), *ids[offsets[b] : offsets[b + 1]].tolist()}
        every = [
            (-float(row[indices[label // group].long()] @ values[label].double() + bias[label]), first + label)
            for label in range(len(values))
            if first + label not in never
        ]
        top = (sorted(every) + [(torch.inf, -1)] * best)[:best]
        scores.append([-score for score, _ in top])
        found.append([label for _, label in top])
    shape = len(x), best
    return [torch.tensor(scores).view(shape), torch.tensor(found, dtype=torch.int64).view(shape)]

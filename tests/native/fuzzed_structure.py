"""Random arguments, right and broken, to every op of the CPU: each call is refused, or gives the reference's answer.

Run as a program, under the sanitizers (`make test-asan`): `python fuzzed_structure.py --native FILE --trials 4000`.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from fuzzed_fan_in import (
    fan_in_draw,
    fan_in_mm,
    fan_in_mm_t,
    fan_in_rewire,
    fan_in_sdd,
    fan_in_step,
    fan_in_topk,
)  # fmt: skip
from fuzzed_numbers import Arguments
from fuzzed_pages import page_append, page_attention, page_choose, page_key_scores, page_scores
from fuzzed_tiles import detect, dsd, gather, gather_mm, grouped_mm, grouped_outer, scatter, sdd, transpose
from fuzzed_zeros import (
    few_rows,
    gated_mv,
    keep_bits,
    open_mv,
    relu_bits,
    skip_conv,
    skip_conv_weight,
    skip_mv,
    topk_mask,
)  # fmt: skip
from torch import Tensor

REFUSALS = (ValueError, TypeError, RuntimeError)
# Wrong numbers: near, far, and so far that a product of two is beyond 64 bits. Nothing that could be allocated.
NUMBERS = (-(2**63), -(2**50), -1, 0, 1, 2, 5, 13, 2**44, 2**50, 2**56, 2**57, 2**62, 2**63 - 1, 2**63)
ENTRIES = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 9, 40, 65535, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
# Of the arguments, the numbers of these become addresses: they are broken inside, others only in shape and dtype.
STRUCTURE = (
    "offsets", "indices", "order", "source", "target", "work", "candidates", "lengths", "table", "heads",
    "list_offsets", "list_pages",
)  # fmt: skip
WRITES = {
    "fan_in_step": ("values", "bias"), "fan_in_rewire": ("values", "indices", "states", "ages"),
    "fan_in_draw": ("out",), "page_attention": ("out", "lse"),
    "page_append": (
        "pool_keys", "pool_values", "key_scales", "value_scales", "extremes", "sketches", "sketch_scales",
    ),
}  # fmt: skip

OPS: tuple[Callable[[random.Random], Arguments], ...] = (
    detect, gather, scatter, transpose, dsd, dsd, fan_in_mm, fan_in_mm_t, fan_in_sdd, fan_in_step, fan_in_topk,
    fan_in_rewire, fan_in_draw, sdd, gather_mm, grouped_mm, grouped_outer, skip_conv,
    skip_conv_weight, relu_bits, keep_bits, topk_mask, skip_mv, gated_mv, few_rows, open_mv, page_append,
    page_attention, page_scores, page_key_scores, page_choose,
)  # fmt: skip


def broken_tensor(draw: random.Random, x: Tensor, inside: bool) -> Tensor:
    """Another tensor in place of x: other contents, another size or dtype, or memory laid out in another way."""
    how = draw.choice(
        ("write", "write", "write", "rows", "dtype", "strides") if inside else ("rows", "dtype", "strides")
    )
    if how == "write" and x.numel():
        x = x.clone()
        info = torch.iinfo(x.dtype)
        for _ in range(draw.choice((1, 1, 3))):
            entry = draw.choice((*ENTRIES, draw.randint(0, 20)))
            entry = (entry - info.min) % (info.max - info.min + 1) + info.min
            flat = x.view(torch.int16) if x.dtype == torch.uint16 else x  # torch writes no single uint16
            flat.view(-1)[draw.randrange(x.numel())] = (
                entry - 65536 if x.dtype == torch.uint16 and entry > 32767 else entry
            )
    elif how == "rows" and x.dim():
        wide = x.view(torch.int16) if x.dtype == torch.uint16 else x
        wide = torch.cat([wide, wide])[: max(0, len(x) + draw.choice((-1, 1, 2)))].clone()
        x = wide.view(torch.uint16) if x.dtype == torch.uint16 else wide
    elif how == "dtype":
        x = x.to(draw.choice((torch.int16, torch.int32, torch.int64, torch.float64, torch.bfloat16)))
    elif how == "strides" and x.dim() and x.dtype != torch.uint16:
        x = torch.stack([x, x], -1)[..., 0]
    return x


def broken(draw: random.Random, arguments: Arguments) -> tuple[Arguments, str]:
    """The arguments with one of them, structure most often, not what it should be; and its name."""
    arguments = dict(arguments)
    names = [
        name
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (bool, str, float, list))
    ]
    structure = [name for name in names if name in STRUCTURE]
    name = draw.choice(structure if structure and draw.random() < 0.6 else names)
    value = arguments[name]
    if isinstance(value, Tensor):
        arguments[name] = broken_tensor(draw, value, name in STRUCTURE)
    elif isinstance(value, tuple):
        changed = list(value)
        changed[draw.randrange(2)] = draw.choice(NUMBERS)
        arguments[name] = tuple(changed)
    else:
        arguments[name] = draw.choice(NUMBERS)
    return arguments, name


def answer(backend: Any, op: str, arguments: Arguments) -> tuple[Tensor, ...]:
    if op == "skip_conv":  # each backend packs for itself; the mutant is of the shape of a weight
        arguments = {**arguments, "packed": backend.skip_pack(arguments["packed"])}
    if op in WRITES:
        arguments = {name: copied(x) for name, x in arguments.items()}
    found = getattr(backend, op)(**arguments)
    found = found if isinstance(found, tuple) else () if found is None else (found,)
    written = [arguments[name] for name in WRITES.get(op, ())]
    return *found, *(each for x in written if x is not None for each in (x if isinstance(x, list) else [x]))


def copied(x: Any) -> Any:
    return [copied(each) for each in x] if isinstance(x, list) else x.clone() if isinstance(x, Tensor) else x


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(
        one.dtype == two.dtype and torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))
        if one.dtype == torch.uint16
        else one.dtype == two.dtype and torch.equal(one, two)
        for one, two in zip(ours, theirs, strict=True)
    )


def repeats(arguments: Arguments) -> bool:
    """Is a tile named twice? Of two in one place, scatter takes one or the other."""
    offsets, indices = arguments["offsets"].tolist(), arguments["indices"].tolist()
    rows = [indices[slot:end] for slot, end in pairwise(offsets)]
    return any(len(set(row)) < len(row) for row in rows)


def trial(seed: int) -> str:
    """One call: "right", "refused" (of broken arguments) or "no oracle"; AssertionError, or a crash, for a fault."""
    from by_name import cpu, reference

    draw = random.Random(seed)
    op = draw.choice(OPS)
    arguments = op(draw)
    is_broken, name = draw.random() < 0.7, ""
    if is_broken:
        arguments, name = broken(draw, arguments)
    torch.set_num_threads(draw.choice((1, 2)))
    try:
        ours = answer(cpu, op.__name__, arguments)
    except REFUSALS as error:
        assert is_broken and str(error), f"seed {seed}: {op.__name__} refused what is right: {error}"
        return "refused"
    if op is fan_in_topk and name in ("ids", "always"):  # a list that does not ascend says nothing
        return "no oracle"
    if op is skip_conv and name in ("out", "packed"):  # how many outputs are packed is seen in whole groups of them
        return "no oracle"
    try:
        theirs = answer(reference, op.__name__, arguments)
    except RuntimeError as error:
        if any(word in str(error) for word in ("allocate", "overflow", "padding")):  # it makes whole tiles
            return "no oracle"
        raise AssertionError(f"seed {seed}: {op.__name__} followed what the reference refuses: {error}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise AssertionError(f"seed {seed}: {op.__name__} followed what the reference refuses: {error}") from error
    if op is scatter and repeats(arguments):
        return "no oracle"
    if op is page_attention and name in ("window", "sink"):  # of more than one key, results are rounded
        return "no oracle"
    assert same(ours, theirs), f"seed {seed}: {op.__name__} is wrong"
    return "right"


def run(seeds: Iterable[int]) -> Counter[str]:
    return Counter(trial(seed) for seed in seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--native", help="the file of the extension to test in place of the installed one")
    parser.add_argument("--trials", type=int, default=4000, help="for each instruction set")
    given = parser.parse_args()
    if given.native:
        import gossamer

        spec = importlib.util.spec_from_file_location("gossamer._native", given.native)
        gossamer._native = sys.modules["gossamer._native"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(gossamer._native)
    from gossamer import _native

    for isa in _native.available_isas():
        _native.set_isa(isa)
        print(isa, dict(run(range(given.trials))), flush=True)

"""Random arguments of the ops that look for zeros where they read, and of masks."""

from __future__ import annotations

import random

import torch
from fuzzed_numbers import Arguments, integers


def _geometry(draw: random.Random) -> tuple[list[tuple[int, int]], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride, padding and dilation; a size; what comes of it."""
    pairs = [tuple(draw.choice(some) for _ in "HW") for some in ((1, 2, 3, 4), (1, 1, 2, 3), (0, 1, 2), (1, 1, 2))]
    kernel, stride, padding, dilation = pairs
    size = tuple(draw.randint(1, 9) + d * (r - 1) for r, d in zip(kernel, dilation, strict=True))
    rows = [
        (i + 2 * p - d * (r - 1) - 1) // s + 1
        for i, r, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    return pairs, size, tuple(rows)


def skip_conv(draw: random.Random) -> Arguments:
    pairs, size, result = _geometry(draw)
    n, c, k = draw.choice((0, 1, 3)), draw.choice((1, 7, 16, 40)), draw.choice((1, 8, 24, 70))
    transposed = draw.random() < 0.5
    (h, w), out = (result, size) if transposed else (size, result)
    x = integers(draw, n, h, w, c, density=0.4)
    bits = torch.full((n, h, w, -(-c // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {
        "x": x, "packed": integers(draw, k, c, *pairs[0]), "bias": draw.choice((None, integers(draw, k))),
        "bits": draw.choice((None, bits)), "out": k, "kernel": pairs[0], "stride": pairs[1], "padding": pairs[2],
        "dilation": pairs[3], "transposed": transposed, "size": out, "relu": draw.random() < 0.5,
    }  # fmt: skip


def skip_conv_weight(draw: random.Random) -> Arguments:
    pairs, size, result = _geometry(draw)
    n, c, k = draw.choice((1, 3)), draw.choice((1, 7, 40)), draw.choice((1, 24, 70))
    bits = torch.full((n, *result, -(-k // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {
        "x": integers(draw, n, *size, c, density=0.4), "dy": integers(draw, n, *result, k, density=0.4),
        "bits": draw.choice((None, bits)), "kernel": pairs[0], "stride": pairs[1], "padding": pairs[2],
        "dilation": pairs[3], "skip": draw.choice(("x", "dy")), "channels_last": draw.random() < 0.5,
    }  # fmt: skip


def relu_bits(draw: random.Random) -> Arguments:
    return {"x": integers(draw, draw.choice((0, 3)), draw.choice((0, 1, 31, 32, 70)))}


def keep_bits(draw: random.Random) -> Arguments:
    rows, cols = draw.choice((0, 3)), draw.choice((0, 1, 31, 32, 70))
    bits = torch.full((rows, -(-cols // 32)), draw.getrandbits(30), dtype=torch.int32)
    return {"x": integers(draw, rows, cols), "bits": bits}


def topk_mask(draw: random.Random) -> Arguments:
    n = draw.choice((0, 1, 64, 200))
    allowed = draw.choice((None, torch.rand(n) < 0.5))
    return {
        "scores": integers(draw, n),
        "k": draw.choice((0, 1, n)),
        "largest": draw.random() < 0.5,
        "allowed": allowed,
    }


def skip_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 9)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 257))
    return {
        "x": integers(draw, b, c, density=0.4), "w": integers(draw, c, k),
        "bias": draw.choice((None, integers(draw, k))), "threshold": draw.choice((0.0, 1.5)),
    }  # fmt: skip


def gated_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 9)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 257))
    return {
        "x": integers(draw, b, c), "w": integers(draw, k, c), "bias": draw.choice((None, integers(draw, k))),
        "gate": integers(draw, b, k, density=0.4),
    }  # fmt: skip


def few_rows(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 9)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 9, 257))
    return {"x": integers(draw, b, c), "w": integers(draw, k, c), "bias": draw.choice((None, integers(draw, k)))}


def open_mv(draw: random.Random) -> Arguments:
    b, c, k = draw.choice((0, 1, 3, 8)), draw.choice((0, 1, 65, 200)), draw.choice((0, 1, 9, 257))
    return {
        "x": integers(draw, b, c), "whole": integers(draw, k, c).to(torch.int8), "edges": integers(draw, 2, k).abs(),
        "bias": draw.choice((None, integers(draw, k))),
    }  # fmt: skip

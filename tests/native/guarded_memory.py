"""Calls every native op on buffers that end, then begin, at an inaccessible page: one byte outside is a crash.

Run as a program: `python guarded_memory.py ISA ISA ...`. Prints the number of calls made for each.
"""

import ctypes
import mmap
import random
import sys

import torch

from gossamer import _native

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
KEPT = []  # the mappings must outlive the addresses


def guarded(content: bytes | int, at_end: bool) -> int:
    """The address of a buffer with this content (or this many bytes of 0xff) between two inaccessible pages."""
    data = content if isinstance(content, bytes) else b"\xff" * content
    pages = -(-len(data) // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = PAGE + ((pages - 2) * PAGE - len(data) if at_end else 0)
    memory[start : start + len(data)] = data
    for guard in (base, base + (pages - 1) * PAGE):
        assert LIBC.mprotect(guard, PAGE, 0) == 0  # PROT_NONE
    KEPT.append(memory)
    return base + start


def content(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tiles(draw: random.Random, at_end: bool) -> None:
    size, threads = draw.choice((1, 2, 4, 8)), draw.choice((1, 2))
    dtype = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    rows, cols = draw.randint(0, 40), draw.choice((0, 1, 5, 63, 64, 65, 127, 200, 1500))
    bm, bn = draw.randint(1, 12), draw.choice((1, 2, 3, 5, 8, 16, 64, 70))
    tile_rows, tile_cols = -(-rows // bm), -(-cols // bn)
    x = torch.randint(-9, 9, (rows, cols)).mul(torch.rand(rows, cols) < draw.choice((0, 0.05, 1))).to(dtype)
    capacity = max(0, tile_rows * tile_cols + draw.choice((-3, 0, 2)))
    index_size = draw.choice((2, 4))
    source = guarded(content(x), at_end)
    flags = guarded(8 * tile_rows * (-(-tile_cols // 64) + 1), at_end)
    offsets, indices = guarded(8 * (tile_rows + 1), at_end), guarded(index_size * capacity, at_end)
    _native.detect(
        source, rows, cols, size, False, bm, bn, capacity, flags, offsets, indices, index_size, False, threads
    )
    index = (offsets, indices, index_size, capacity, rows, cols, bm, bn)
    values, dense = guarded(size * bm * bn * capacity, at_end), guarded(size * rows * cols, at_end)
    fits = number(offsets + 8 * tile_rows) <= capacity  # else every op refuses it before it reads an index
    assert _native.gather(source, size, index, values, threads) == fits
    counts, offsets_t = guarded(4 * threads * tile_cols, at_end), guarded(8 * (tile_cols + 1), at_end)
    indices_t, order = guarded(index_size * capacity, at_end), guarded(4 * capacity, at_end)
    assert _native.transpose(index, counts, offsets_t, indices_t, index_size, order, threads) == fits
    assert _native.scatter(values, size, index, dense, threads) == fits
    if fits:
        dsd(draw, size, values, index, 0, threads, at_end)
        index_t = (offsets_t, indices_t, index_size, capacity, cols, rows, bn, bm)
        dsd(draw, size, values, index_t, order, threads, at_end)


def number(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def dsd(
    draw: random.Random, size: int, values: int, index: tuple[int, ...], order: int, threads: int, at_end: bool
) -> None:
    _, _, _, capacity, rows, k, _, _ = index
    storage, width = {1: 3, 2: 2, 4: 0, 8: 1}[size], 8 if size == 8 else 4
    n = draw.choice((0, 1, 7, 16, 33, 200))
    scale = guarded(4 * capacity, at_end) if size == 1 else 0
    work = guarded(content(torch.tensor([-1, 0, 0, 0, 0, 0])), at_end) if draw.random() < 0.5 else 0
    room = _native.dsd_workspace(storage, size >= 4 and not order, index, n, work, 2 if work else 0, True, threads)
    for stride, columns in ((n, False), (k, True)):
        b, c = guarded(width * k * n, at_end), guarded(width * rows * n, at_end)
        assert _native.dsd(
            values, storage, scale, index, order, 4, order != 0, (b, stride, columns), n, c, draw.random() < 0.5, work,
            2 if work else 0, guarded(room, at_end), threads,
        )  # fmt: skip


def sdd(draw: random.Random, at_end: bool) -> None:
    size, threads = draw.choice((4, 8)), draw.choice((1, 2))
    dtype = {4: torch.float32, 8: torch.float64}[size]
    m, k, n = draw.randint(0, 40), draw.choice((0, 1, 7, 16, 33, 600)), draw.randint(0, 70)
    bm, bn = draw.choice(((1, 1), (1, 7), (5, 1), (3, 5), (4, 4), (16, 16)))
    tile_rows, tile_cols = -(-m // bm), -(-n // bn)
    mask = torch.rand(tile_rows, tile_cols) < draw.choice((0.1, 0.5, 1))
    offsets = guarded(content(torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))), at_end)
    indices = guarded(content(mask.nonzero()[:, 1].int()), at_end)
    capacity = int(mask.sum())
    left, right = draw.choice((False, True)), draw.choice((False, True))
    a, b = (guarded(content(torch.randn(count, dtype=dtype)), at_end) for count in (m * k, k * n))
    values = guarded(size * bm * bn * capacity, at_end)
    packed = guarded(size * k * (m * left + n * (not right)), at_end)
    following = guarded(8 * (tile_rows + 1 + threads), at_end)
    operands = (a, m if left else k, left), (b, k if right else n, right)
    index = (offsets, indices, 4, capacity, m, n, bm, bn)
    assert _native.sdd(*operands, k, size, index, values, packed, following, threads)


def gather_mm(draw: random.Random, at_end: bool) -> None:
    size, threads = draw.choice((4, 8)), draw.choice((1, 2))
    dtype = {4: torch.float32, 8: torch.float64}[size]
    batch, k, n = draw.choice((1, 3)), draw.choice((0, 1, 7, 33, 300)), draw.choice((0, 1, 7, 16, 33, 600))
    bm, bk = draw.choice(((1, 300), (1, 1), (5, 1), (3, 5), (2, 16), (16, 16), (20, 400)))
    rows = draw.randint(0, 40) if batch == 1 else batch * bm * draw.randint(0, 3)
    mask = torch.rand(-(-rows // bm), -(-k // bk)) < draw.choice((0.1, 0.5, 1))
    offsets = guarded(content(torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))), at_end)
    indices = guarded(content(mask.nonzero()[:, 1].int()), at_end)
    capacity = int(mask.sum())
    a, b = (guarded(content(torch.randn(count, dtype=dtype)), at_end) for count in (rows * k, batch * k * n))
    index = (offsets, indices, 4, capacity, rows, k, bm, bk)
    room = _native.gather_mm_workspace(size, index, batch, n, threads)
    for stride, columns in ((n, False), (k, True)):
        c, transposed = guarded(size * rows * n, at_end), draw.choice((0, guarded(size * rows * n, at_end)))
        assert _native.gather_mm(
            a, size, index, (b, stride, columns), batch, k * n, n, c, transposed, guarded(room, at_end), threads
        )


def classifier(draw: random.Random, at_end: bool) -> None:
    """A step, a search and a rewiring of one classifier; the last group and the last vector are ragged."""
    threads, group, size = draw.choice((1, 2)), draw.choice((1, 16, 64)), draw.choice((2, 4))
    labels, batch, cols = draw.choice((0, 1, 37, 300)), draw.choice((0, 1, 7, 16, 33, 70)), draw.choice((1, 9, 60))
    k, best, adam = draw.choice((1, cols // 2 + 1, cols)), draw.choice((1, 5, 40)), draw.choice((0, 1, 2))
    rows = -(-labels // group)
    kind, index = (torch.float32, torch.bfloat16)[size == 2], draw.choice((torch.uint16, torch.int32))
    columns = torch.rand(rows, cols).argsort(1)[:, :k].sort(1).values.to(index)
    values, indices = guarded(content(torch.randn(labels, k).to(kind)), at_end), guarded(content(columns), at_end)
    bias = draw.choice((0, guarded(content(torch.randn(labels)), at_end)))
    states = [guarded(content(torch.rand(labels, k)), at_end) if i < adam else 0 for i in range(2)]
    of_bias = [guarded(content(torch.rand(labels)), at_end) if bias and i < adam else 0 for i in range(2)]
    shape, at = (batch, cols, labels, k, group, columns.itemsize, size), (values, indices, bias, *states, *of_bias)
    positives = (torch.rand(labels, batch) < 0.2).flatten().nonzero().flatten().contiguous()
    named = guarded(content(positives), at_end), len(positives)
    ids, offsets = torch.arange(labels // 3), torch.tensor([0] + [labels // 3] * batch)
    excluded = (
        guarded(content(offsets), at_end),
        guarded(content(ids), at_end),
        len(ids),
        guarded(content(ids), at_end),
        1,
    )
    excluded = excluded if labels > 2 else (0, 0, 0, 0, 0)
    x = guarded(content(torch.randn(batch, cols)), at_end)
    for operand in ((x, cols, False), (x, batch, True)):
        room = guarded(_native.fan_in_step_workspace(shape, threads), at_end)
        assert _native.fan_in_step(
            operand, shape, at, *named, draw.choice((0, 1)), adam, 1.0, 0.1, 0.1, 0.9, 0.1, 0.99, 0.01, 1.0, 1e-8, 1, 2,
            guarded(4 * batch * cols, at_end), guarded(8, at_end), room, threads,
        )  # fmt: skip
        room = guarded(_native.fan_in_topk_workspace(shape, best, threads), at_end)
        found = guarded(4 * batch * best, at_end), guarded(8 * batch * best, at_end)
        assert _native.fan_in_topk(operand, shape, at, 5, excluded, best, *found, room, threads) == -1
    drop, everywhere, spare = draw.choice((-1, 1, k)), draw.choice((0, 1)), cols - k
    ages = draw.choice((0, guarded(content(torch.randint(4, (rows, k), dtype=torch.uint8)), at_end)))
    how = (drop, everywhere, draw.choice((0, 1)), ages, 2 if ages else 0, 0, 0, -1, 7, 3, 0)
    room = guarded(_native.fan_in_rewire_workspace(shape, how, threads), at_end)
    assert _native.fan_in_rewire(shape, at, how, 0.5, 0.25, room, threads) >= 0
    out = guarded(columns.itemsize * rows * spare, at_end)
    assert _native.fan_in_draw(out, columns.itemsize, rows, spare, cols, indices, k, 1, 2, 0, threads)


def fan_in(draw: random.Random, at_end: bool) -> None:
    """The product and both of its gradients."""
    size, threads, index = draw.choice((4, 8)), draw.choice((1, 2)), draw.choice((torch.uint16, torch.int32))
    rows, batch, cols = draw.choice((0, 1, 17, 300)), draw.choice((0, 1, 7, 16, 33, 70)), draw.choice((1, 9, 60))
    k, wide = draw.choice((0, 1, 5, 40)), index.itemsize
    x, dy, values = (guarded(size * n, at_end) for n in (batch * cols, batch * rows, rows * k))
    indices = guarded(content(torch.randint(cols, (rows, k)).to(index)), at_end)
    for turned in (False, True):
        left, right = (x, batch if turned else cols, turned), (dy, batch if turned else rows, turned)
        room = guarded(_native.fan_in_mm_workspace(size, batch, cols), at_end)
        y = guarded(size * batch * rows, at_end)
        assert _native.fan_in_mm(left, batch, cols, values, size, indices, wide, rows, k, y, room, threads)
        room = guarded(_native.fan_in_mm_t_workspace(size, batch, rows, cols, k, threads), at_end)
        dx = guarded(size * batch * cols, at_end)
        assert _native.fan_in_mm_t(right, batch, rows, values, size, indices, wide, k, dx, cols, room, threads)
        room, dw = guarded(_native.fan_in_sdd_workspace(size, batch, cols), at_end), guarded(size * rows * k, at_end)
        assert _native.fan_in_sdd(right, left, batch, rows, cols, size, indices, wide, k, dw, room, threads)


def grouped(draw: random.Random, at_end: bool) -> None:
    size, threads, count = draw.choice((4, 8)), draw.choice((1, 2)), draw.choice((0, 1, 5))
    dtype = {4: torch.float32, 8: torch.float64}[size]
    tokens, k, n = draw.choice((0, 3, 50)), draw.choice((0, 1, 7, 33, 300)), draw.choice((0, 1, 7, 16, 33, 600))
    ends = torch.randint(0, tokens + 1, (count,)).sort().values
    offsets = guarded(content(torch.nn.functional.pad(ends, (1, 0))), at_end)
    source, target = (guarded(content(torch.randperm(tokens).int()), at_end) for _ in range(2))
    x, w, dy = (guarded(content(torch.randn(c, dtype=dtype)), at_end) for c in (tokens * k, count * k * n, tokens * n))
    workspace = guarded(_native.grouped_workspace(size, tokens, threads), at_end)
    lists = (source, 4, target, 4, tokens, offsets, count)
    y, dw = guarded(size * tokens * n, at_end), guarded(size * count * k * n, at_end)
    for flip in (False, True):
        assert _native.grouped_mm(x, size, tokens, k, *lists, w, flip, n, y, tokens, workspace, threads)
    assert _native.grouped_outer(x, size, tokens, k, dy, tokens, n, *lists, dw, workspace, threads)


def elements(draw: random.Random, at_end: bool) -> None:
    size, threads = draw.choice((1, 2, 4, 8)), draw.choice((1, 2))
    n = draw.choice((0, 1, 15, 63, 64, 65, 200, 40_001))
    mask = guarded(content(torch.rand(n) < 0.5), at_end)
    _native.mask(guarded(n * size, at_end), mask, n, size, threads)
    _native.read(guarded(n * size, at_end), n * size, threads)
    scores = guarded(content(torch.randn(n)), at_end)
    workspace = guarded(_native.select_workspace(n, threads), at_end)
    for allowed in (0, mask):
        for k in (0, n // 3, n):
            _native.select(scores, allowed, n, k, True, guarded(n, at_end), workspace, threads)


def few_rows(draw: random.Random, at_end: bool) -> None:
    threads, batch, short = draw.choice((1, 2)), draw.choice((0, 1, 3, 8, 9)), draw.choice((False, True))
    c, k = draw.choice((0, 1, 7, 8, 65, 200)), draw.choice((0, 1, 15, 64, 257, 700))
    dtype = torch.bfloat16 if short else torch.float32
    x, gate = (torch.randn(batch, n) * (torch.rand(batch, n) < draw.choice((0, 0.3, 1))) for n in (c, k))
    x, gate, w = (guarded(content(value), at_end) for value in (x, gate, torch.randn(c * k).to(dtype)))
    bias, y = draw.choice((0, guarded(content(torch.randn(k)), at_end))), guarded(4 * batch * k, at_end)
    counts, workspace = guarded(8, at_end), guarded(_native.skip_mv_workspace(c), at_end)
    _native.skip_mv(x, batch, c, w, short, k, bias, 0.5, y, counts, workspace, threads)
    workspace = guarded(_native.gated_mv_workspace(k), at_end)
    _native.gated_mv(x, batch, c, w, short, k, bias, gate, y, workspace, threads)
    rows = guarded(content(torch.randn(batch, c)), at_end)
    _native.few_rows(rows, batch, c, w, short, k, bias, y, threads)
    whole = guarded(content(torch.randint(-127, 128, (c * k,), dtype=torch.int8)), at_end)
    scale, slack = (guarded(content(torch.rand(k)), at_end) for _ in range(2))
    _native.open_mv(x, batch, c, whole, scale, slack, k, bias, y, guarded(4 * batch, at_end), threads)


def skip_conv(draw: random.Random, at_end: bool) -> None:
    threads, c, k = draw.choice((1, 2)), draw.choice((0, 1, 7, 16, 40, 96)), draw.choice((0, 1, 8, 24, 70, 130))
    n, h, w = draw.choice((0, 1, 3)), draw.randint(1, 9), draw.choice((1, 2, 9, 20))
    kernel = (1, 1) if draw.random() < 0.3 else (draw.randint(1, 4), draw.randint(1, 7))
    stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2))
    padding = (0, 0) if draw.random() < 0.3 else (draw.randint(0, 3), draw.randint(0, 7))
    reach = [s + 2 * p - d * (r - 1) - 1 for s, p, d, r in zip((h, w), padding, dilation, kernel, strict=True)]
    size = [max(r // s + 1, 0) for r, s in zip(reach, stride, strict=True)]
    for transposed, (channels, in_size, out, out_size) in enumerate(((c, (h, w), k, size), (k, size, c, (h, w)))):
        pixels, outs = n * in_size[0] * in_size[1], n * out_size[0] * out_size[1]
        x = torch.randn(pixels * channels).mul(torch.rand(pixels * channels) < 0.5)
        words, out_words = -(-channels // 32), -(-out // 32)
        group, taps = _native.skip_pack_outs(out), kernel[0] * kernel[1]
        lanes = _native.skip_pack_lanes(channels, kernel[0])
        packed = guarded(4 * max(-(-out // group), 1) * group * -(-channels // lanes) * lanes * taps, at_end)
        weight = guarded(content(torch.randn(out * channels * taps)), at_end)
        _native.skip_pack(weight, out, channels, *kernel, channels * taps, taps, kernel[1], 1, packed, threads)
        bits = draw.choice((0, guarded(4 * pixels * words, at_end)))
        bias, relu = draw.choice((0, guarded(4 * out, at_end))), draw.choice((False, True))
        down, along = zip(in_size, out_size, kernel, stride, padding, dilation, strict=True)
        conv = (n, channels, out, *down, *along)
        room = _native.skip_conv_workspace(conv, bool(transposed), threads)
        _native.skip_conv(
            guarded(content(x), at_end), packed, bias, bits, conv, bool(transposed), relu,
            guarded(4 * outs * out, at_end), guarded(4 * outs * out_words, at_end) if relu else 0, guarded(16, at_end),
            guarded(room, at_end), threads,
        )  # fmt: skip
    rows = draw.randint(0, 5)
    x, y, bits = guarded(4 * rows * k, at_end), guarded(4 * rows * k, at_end), guarded(4 * rows * -(-k // 32), at_end)
    _native.relu_bits(x, rows, k, y, bits, threads)
    _native.keep_bits(x, bits, rows, k, y, threads)


def skip_conv_weight(draw: random.Random, at_end: bool) -> None:
    n, channels, outputs, threads = draw.choice((1, 3)), draw.randint(1, 70), draw.randint(1, 70), draw.choice((1, 2))
    axes = []
    for _ in "HW":
        taps, stride, padding, dilation = (
            draw.choice((1, 3, 4)),
            draw.choice((1, 2)),
            draw.choice((0, 1, 2)),
            draw.choice((1, 2)),
        )
        out = draw.choice((1, 2, 7, 20))
        size = max(1, (out - 1) * stride + dilation * (taps - 1) + 1 - 2 * padding)
        axes.append(
            (size, (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1, taps, stride, padding, dilation)
        )
    weight_gradient(draw, at_end, n, channels, outputs, axes, threads)


def skip_conv_weight_in_stretches(draw: random.Random, at_end: bool) -> None:
    """Of 16384 pixels or more a small gradient is made in stretches, each with sums of its own."""
    channels, outputs, threads = draw.randint(1, 20), draw.randint(1, 20), draw.choice((1, 2))
    axis = draw.choice(((131, 131, 3, 1, 1, 1), (131, 131, 1, 1, 0, 1), (261, 131, 1, 2, 0, 1), (262, 131, 3, 2, 1, 1)))
    weight_gradient(draw, at_end, 1, channels, outputs, [axis, axis], threads)


def weight_gradient(
    draw: random.Random, at_end: bool, n: int, channels: int, outputs: int, axes: list[tuple[int, ...]], threads: int
) -> None:
    (h, oh, r, *_), (w, ow, s, *_) = axes
    x, dy = (
        torch.randn(count).relu() * (torch.rand(count) < draw.choice((0.2, 1)))
        for count in (n * h * w * channels, n * oh * ow * outputs)
    )
    bits = torch.randint(-99, 99, (n * oh * ow * -(-outputs // 32),), dtype=torch.int32)
    for skip_dy in (False, True):
        conv = (n, channels, outputs, *axes[0], *axes[1])
        _native.skip_conv_weight(
            guarded(content(x), at_end), guarded(content(dy), at_end), draw.choice((0, guarded(content(bits), at_end))),
            conv, skip_dy, guarded(4 * outputs * channels * r * s, at_end), draw.choice((False, True)),
            guarded(24, at_end), guarded(_native.skip_conv_weight_workspace(conv, skip_dy, threads), at_end), threads,
        )  # fmt: skip


def pages(draw: random.Random, at_end: bool) -> None:
    """Attention over pages that nobody else has; what lies behind a request's last key was never written."""
    storage, dtype = draw.choice(((0, torch.float32), (2, torch.bfloat16), (2, torch.bfloat16), (4, torch.float16)))
    heads, group, width, page = draw.randint(1, 2), draw.randint(1, 5), draw.choice((16, 48, 80)), draw.choice((32, 64))
    new, threads = [draw.choice((0, 1, 3, 70)) for _ in range(2)], draw.choice((1, 2))
    lengths = [n + draw.choice((0, 1, 100, 1100)) for n in new]
    cols = max(1, *(-(-length // page) for length in lengths))
    count = 2 * cols
    numbers = [guarded(content(torch.randn(count * heads * width * page).to(dtype)), at_end) for _ in range(2)]
    table = torch.randperm(count).int()
    requests = (
        guarded(content(torch.tensor([0, new[0], sum(new)])), at_end), guarded(content(torch.tensor(lengths)), at_end),
        guarded(content(table), at_end), 2, sum(new), cols,
    )  # fmt: skip
    tokens, query_heads = sum(new), heads * group
    shape = (query_heads, group, draw.choice((2**40, 64)), draw.choice((2**56, 40)), draw.choice((0, 10)))
    pool = (*numbers, 0, 0, count, heads, width, page, storage)
    first, lists = guarded(content(torch.arange(heads) * group), at_end), (0, 0, 0, 0)
    size = _native.page_attention_workspace(pool, requests, shape, first, lists, threads)
    out = guarded(4 * tokens * query_heads * width, at_end)
    assert _native.page_attention(
        guarded(content(torch.randn(tokens * query_heads * width)), at_end), pool, requests, shape, first, lists, 0.2,
        draw.choice((0.0, 5.0)), out, draw.choice((0, guarded(4 * tokens * query_heads, at_end))),
        guarded(size, at_end), threads,
    )  # fmt: skip


def ranks(draw: random.Random, at_end: bool) -> None:
    """Keys into pages with all that is kept of them, the scores of those, and a choice."""
    heads, group, page = draw.randint(1, 2), draw.randint(1, 5), draw.choice((32, 64))
    storage, bits = draw.choice(((0, 32), (0, 32), (3, 8), (5, 4)))
    width = draw.choice((32, 96) if bits == 4 else (16, 48, 80))
    length, threads = draw.choice((1, 70, 300)), draw.choice((1, 2))
    cols, query_heads = -(-length // page), heads * group
    tiles = cols * heads
    numbers = [guarded(bits * tiles * width * page // 8, at_end) for _ in range(2)]
    scales = [guarded(2 * tiles * 2 * page, at_end) if storage else 0 for _ in range(2)]
    pool = (*numbers, *scales, cols, heads, width, page, storage)
    lengths, table = (
        guarded(content(torch.tensor([length])), at_end),
        guarded(content(torch.randperm(cols).int()), at_end),
    )
    requests = guarded(content(torch.tensor([0, length])), at_end), lengths, table, 1, length, cols
    summaries = [(guarded(2 * tiles * page // 16 * 2 * width, at_end), 16) for _ in range(2)]
    sketches = guarded(tiles * width * page // 2, at_end), guarded(2 * tiles * 2 * page, at_end), 1
    new = [guarded(content(torch.randn(length * heads * width)), at_end) for _ in range(2)]
    sources, first = (guarded(content(torch.arange(heads) * step), at_end) for step in (1, group))
    assert _native.page_append(*new, heads, sources, pool, requests, *summaries, sketches, threads)
    newest = (guarded(content(torch.tensor([0, 1])), at_end), *requests[1:4], 1, cols)
    scores = guarded(4 * query_heads * cols, at_end)
    forms = [guarded(content(torch.randn(query_heads * n * width)), at_end) for n in (1, 2)]
    assert _native.page_scores(forms[1], query_heads, group, first, pool, newest, summaries[0], scores, threads)
    for codes in (sketches, (numbers[0], scales[0], bits // 4)) if storage else (sketches,):
        assert _native.page_key_scores(forms[0], query_heads, group, first, pool, newest, codes, scores, threads)
    count, together = draw.randint(1, cols), draw.random() < 0.5
    chosen = guarded(4 * heads * (1 if together else group) * count, at_end)
    assert _native.page_choose(
        scores, query_heads, group, first, heads, together, lengths, 1, cols, page, count, chosen, threads
    )


def calls_of(isa: str) -> int:
    """How many calls of attention went well, after all others of this instruction set did."""
    _native.set_isa(isa)
    torch.manual_seed(0)
    calls = 0
    for seed in range(60):
        for at_end in (True, False)[: 1 + (seed % 3 == 0)]:  # what is read too far is read behind the end more often
            KEPT.clear()
            pages(random.Random(seed), at_end)
            calls += 1
            if _native.ops_of(isa) != _native.ops_of("scalar"):  # code of its own for attention alone
                continue
            for call in (
                tiles, sdd, gather_mm, grouped, fan_in, classifier, elements, few_rows, skip_conv, skip_conv_weight,
                ranks,
            ):  # fmt: skip
                call(random.Random(seed), at_end)
            if seed < 6:
                skip_conv_weight_in_stretches(random.Random(seed), at_end)
    return calls


if __name__ == "__main__":
    for isa in sys.argv[1:]:
        print(f"{isa}: ", end="", flush=True)
        print(calls_of(isa), flush=True)

"""Law: the step of a classifier by either of Triton's routes, its best labels by block and its rewiring by row are the
reference's."""

import pytest
import torch
from backends import TRITON, interpreted, on
from calls import kernel_results, results_in_blocks

from gossamer.kernels.reference.fan_in_rewire import fan_in_draw
from gossamer.ops.fan_in.step import STATES
from gossamer.testing import assert_same_bits

STEP, TOPK = "gossamer.kernels.triton.fan_in_step", "gossamer.kernels.triton.fan_in_topk"
SMALL = {"TILE_ELEMENTS": 64 * 9, "GRADIENT_ELEMENTS": 64 * 9, "MOST_PARTS": 3}
# Labels, cols, k, batch, group; of two blocks, with ragged ends everywhere.
CASES = [
    ("gather", (70, 20, 3, 9, 1), torch.float32, "bce", "adam", True),
    ("gather", (70, 20, 5, 9, 16), torch.float32, "bce", "momentum", True),
    ("gather", (70, 33, 17, 7, 64), torch.bfloat16, "hinge", "sgd", False),
    ("dense", (70, 20, 3, 9, 1), torch.float32, "bce", "momentum", False),
    ("dense", (130, 33, 17, 33, 1), torch.bfloat16, "hinge", "adam", True),
    ("dense", (3, 1, 1, 1, 1), torch.float32, "hinge", "sgd", True),
]

# Labels, cols, k, group; drop, threshold, everywhere, avoid_dropped; values, indices; states, whether there are ages;
# init, which the interpreter cuts off in bfloat16.
REWIRINGS = [
    ((9, 20, 6, 1), (3, 0.0, False, True), torch.float32, torch.uint16, 2, True, 0.25),
    ((37, 20, 7, 16), (4, 0.0, False, False), torch.float32, torch.uint16, 1, True, 0.25),
    ((37, 20, 7, 16), (4, 0.0, False, True), torch.bfloat16, torch.uint16, 1, True, 0.0),
    ((9, 70_000, 6, 1), (6, 0.0, False, False), torch.float32, torch.int32, 0, False, 0.25),
    ((37, 12, 9, 16), (9, 0.0, False, True), torch.float32, torch.uint16, 2, False, 0.0),  # 3 columns are free
    ((9, 20, 6, 1), (20, 0.0, True, True), torch.float32, torch.uint16, 0, True, 0.0),
    ((9, 20, 6, 1), (-1, 1.5, False, True), torch.bfloat16, torch.uint16, 2, True, 0.0),  # rows where nothing goes
    ((3, 4, 1, 1), (1, 0.0, False, True), torch.float32, torch.uint16, 0, False, 0.0),
]


def call(backend, module, sizes, op, args, writes=()):
    if backend.slow:
        return interpreted("calls", "results_in_blocks", module, sizes, op, args, writes)
    return results_in_blocks(module, sizes, op, moved(args, backend.device), writes)


def moved(args, device):
    return [
        moved(arg, device) if isinstance(arg, list) else arg.to(device) if isinstance(arg, torch.Tensor) else arg
        for arg in args
    ]


def reference(op, args, writes=()):
    return kernel_results(f"gossamer.kernels.reference.{op}", op, args, writes)


def copied(args):
    return [
        copied(arg) if isinstance(arg, list) else arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args
    ]


def flat(found):
    return [each.cpu() for some in found for each in (some if isinstance(some, list) else [some]) if each is not None]


def problem(sizes, dtype, optimizer, bias, exact=False):
    """x, values, indices (unsorted, one twice in a row), bias, states, positives."""
    labels, cols, k, batch, group = sizes
    draw = (lambda *shape: torch.randint(-2, 3, shape).float()) if exact else torch.randn
    each = STATES[optimizer]
    states = [torch.rand(labels, k) for _ in range(each)] + [torch.rand(labels) for _ in range(each * bias)]
    indices = torch.randint(cols, (-(-labels // group), k)).to(torch.uint16)
    positives = (torch.rand(labels, batch) < 0.1).flatten().nonzero().squeeze(1)
    return draw(batch, cols), draw(labels, k).to(dtype), indices, draw(labels) if bias else None, states, positives


@on(TRITON, "route, sizes, dtype, loss, optimizer, bias", CASES)
def test_a_step(backend, route, sizes, dtype, loss, optimizer, bias):
    given = problem(sizes, dtype, optimizer, bias)
    rule = (sizes[4], loss, optimizer, 0.1, 0.0 if optimizer == "sgd" else 0.1, 0.9, 0.99, 1e-8, 0.5, 3, 2**40 + 5)
    copies = copied(given)
    expected = reference("fan_in_step", (*given, *rule), (1, 3, 4))
    found = call(backend, STEP, SMALL, "step_by", (route, *copies, *rule), (2, 4, 5))
    for got, wanted in zip(flat(found), flat(expected), strict=True):
        # Of sums that differ in the last bit a bfloat16 may be rounded to the other side.
        off = 2e-2 if got.dtype == torch.bfloat16 else 2e-4
        torch.testing.assert_close(got, wanted, rtol=off, atol=off / 10)


@on(TRITON, "route", ["gather", "dense"])
def test_numbers_that_are_exact_are_rounded_by_the_same_bits(backend, route):
    """Updates that bfloat16 has no room for: every value goes where the counter says."""
    sizes = 70, 33, 4, 3, 1
    given = problem(sizes, torch.bfloat16, "sgd", True, exact=True)
    copies = copied(given)
    rule = 1, "hinge", "sgd", 2.0**-11, 0.0, 0.0, 0.0, 0.0, 1.0, 7, -3
    expected = reference("fan_in_step", (*given, *rule), (1, 3))
    found = call(backend, STEP, SMALL, "step_by", (route, *copies, *rule), (2, 4))
    assert all(torch.equal(got, wanted) for got, wanted in zip(flat(found), flat(expected), strict=True))
    assert (given[1] != copies[1]).float().mean() > 0.1


@on(TRITON, "sizes, best, dtype", [
    ((300, 20, 4, 17, 1), 5, torch.float32), ((300, 20, 4, 3, 16), 5, torch.bfloat16),
    ((300, 20, 4, 3, 64), 40, torch.float32), ((5, 20, 4, 1, 1), 9, torch.float32),
])  # fmt: skip
def test_the_best_labels(backend, sizes, best, dtype):
    """Ties everywhere, filters that hit what would be best, a score of -inf, ids beyond 32 bits."""
    x, values, indices, bias, _, _ = problem(sizes, dtype, "sgd", True, exact=True)
    bias[3], (labels, batch), first = -torch.inf, (sizes[0], sizes[3]), 3_000_000_001
    some = [torch.randperm(labels)[:5].sort().values + first for _ in range(batch)]
    offsets, ids = torch.arange(batch + 1) * 5, torch.cat([*some, torch.tensor([first])])  # the last is of no row
    never = torch.tensor([5, first + 2, first + labels + 4])
    for filters in ((None, None, None), (offsets, ids, never)):
        args = x, values, indices, bias, sizes[4], best, first, *filters
        found = call(backend, TOPK, {"BLOCK": 64 * 2 * batch}, "fan_in_topk", args)
        for got, wanted in zip(flat(found), reference("fan_in_topk", args), strict=True):
            assert torch.equal(got, wanted)


def test_the_route_is_chosen_by_what_it_costs():
    step = pytest.importorskip(STEP, reason="triton is not installed: pip install triton")
    for (batch, cols, k, group, tensor), route in (
        ((128, 768, 40, 1, "tf32"), "gather"), ((128, 768, 42, 1, "tf32"), "dense"),
        ((4, 768, 42, 1, "tf32"), "gather"),  # tensor cores would multiply twelve rows of nothing
        ((128, 768, 200, 1, "ieee"), "gather"), ((128, 768, 300, 1, "ieee"), "dense"),
        ((128, 768, 700, 16, "tf32"), "gather"),
    ):  # fmt: skip
        assert step.route_of(batch, cols, k, group, tensor) == route


@on(TRITON, "case", REWIRINGS)
def test_rows_rewired_by_programs_are_the_references_bit_for_bit(backend, case):
    (labels, cols, k, group), how, dtype, index, states, aged, init = case
    torch.manual_seed(labels + k)
    indices = torch.empty(-(-labels // group), k, dtype=index)
    fan_in_draw(indices, None, cols, 5, 0, 0)
    args = [
        torch.randint(-2, 3, (labels, k)).to(dtype),  # many are equal
        indices, [torch.rand(labels, k) for _ in range(states)],
        torch.randint(4, indices.shape, dtype=torch.uint8) if aged else None, None, None, cols, group, *how, int(aged),
        init, 7, 3, 4 * group,
    ]  # fmt: skip
    writes = (0, 1, 2, 3)
    expected = flat(reference("fan_in_rewire", copied(args), writes))
    found = flat(call(backend, "gossamer.kernels.triton.fan_in_rewire", {}, "fan_in_rewire", args, writes))
    assert int(expected[0]) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_bits(mine, theirs)

"""Laws of every op in the table: its numbers, its operands' safety, its schema and fake, its bits in any team."""

import itertools
from pathlib import Path

import pytest
import torch
from backends import CPU, EVERY, on
from calls import results
from oracles import assert_same_numbers
from table import ROWS, SIZES, Drawn

from gossamer.kernels import reference
from gossamer.ops.registration import MODULES
from gossamer.testing import assert_same_bits

EACH = list(itertools.product(ROWS, SIZES))


def copied(args, writes):
    """The arguments, with copies of those that an op writes."""
    return tuple(arg.clone() if at in writes else arg for at, arg in enumerate(args))


def tensors(args):
    return [arg for arg in args if isinstance(arg, torch.Tensor)]


def test_every_op_has_a_row():
    folder = Path(reference.__file__).parent  # ops that tests define have no file there
    ops = {op for op, module in MODULES.items() if (folder / f"{module}.py").exists()}
    assert {row.op for row in ROWS} == ops


@on(EVERY, "row, size", EACH)
def test_numbers(backend, row, size):
    """To the last bit, of integers; and an operand that is not to be written stays as it is."""
    args = row.arguments(Drawn(*size))
    before = [arg.clone() for arg in tensors(args)]
    found = backend.results(row.op, copied(args, row.writes), row.writes)
    for got, exact in zip(found, results(row.meaning, args), strict=True):
        (assert_same_numbers if got.is_floating_point() else assert_same_bits)(got, exact)
    for arg, was in zip(tensors(args), before, strict=True):
        assert_same_bits(arg, was)


@on(CPU, "row", ROWS)
def test_bits_do_not_depend_on_the_team_or_the_run(backend, row):
    args = row.arguments(Drawn(150, 211, 40, real=True))
    first = None
    for threads in (1, 2, 3, 7, 1):
        torch.set_num_threads(threads)
        found = backend.results(row.op, copied(args, row.writes), row.writes)
        for got, expected in zip(found, first or found, strict=True):
            assert_same_bits(got, expected)
        first = first or found


@pytest.mark.parametrize("row, size", [pytest.param(*each, id=f"{each[0].op}-{each[1]}") for each in EACH])
def test_schema_and_fake(row, size):
    """In a graph of symbolic sizes, which takes longest, with rows and without."""
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    first = next(other for other in ROWS if other.op == row.op)
    graphs = ("test_aot_dispatch_dynamic",) if size == SIZES[0] or (size == (0, 5, 4) and row is first) else ()
    op = getattr(torch.ops.gossamer, row.op).default
    torch.library.opcheck(op, row.arguments(Drawn(*size)), test_utils=rules + graphs)


@pytest.mark.parametrize("row", ROWS, ids=[row.op for row in ROWS])
def test_operands_may_lie_anyhow(row):
    """As every second column of a wider tensor, whose other columns are NaN."""
    op, args = getattr(torch.ops.gossamer, row.op).default, row.arguments(Drawn(*SIZES[0]))
    apart = [
        torch.stack([arg, torch.full_like(arg, torch.nan if arg.is_floating_point() else 77)], -1)[..., 0]
        if isinstance(arg, torch.Tensor) and arg.dim() and at not in row.writes
        else arg
        for at, arg in enumerate(args)
    ]
    loose = tensors(arg for at, arg in enumerate(apart) if at not in row.writes)
    assert not loose or any(not arg.is_contiguous() for arg in loose)
    expected = results(op, copied(args, row.writes), row.writes)
    for got, exact in zip(results(op, copied(apart, row.writes), row.writes), expected, strict=True):
        assert_same_bits(got, exact)


@pytest.mark.parametrize("row", ROWS, ids=[row.op for row in ROWS])
def test_what_lies_elsewhere_or_is_sparse_is_refused(row):
    """By its name, before anything is allocated: on meta there is nothing to read, and what came back was unwritten."""
    op, args = getattr(torch.ops.gossamer, row.op).default, row.arguments(Drawn(*SIZES[0]))
    names = [argument.name for argument in op._schema.arguments]
    places = [at for at, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.dim()]
    for at in places:
        x = args[at]
        if len(places) > 1:
            other = names[places[1]] if at == places[0] else names[at]
            said = rf"^{other} must be on the device of {names[places[0]]}, (cpu, got meta|meta, got cpu)"
            with pytest.raises(ValueError, match=said):
                op(*args[:at], x.to("meta"), *args[at + 1 :])
        if x.dtype != torch.uint16:  # of which torch makes nothing sparse
            with pytest.raises(TypeError, match=rf"^{names[at]} must be a strided \(dense\) tensor, got layout"):
                op(*args[:at], x.to_sparse(), *args[at + 1 :])

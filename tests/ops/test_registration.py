"""Law: autograd and torch.compile see an op that writes into an argument; a handle finds a living object only."""

import copy
import gc
import itertools
import pickle
import sys
from types import ModuleType

import pytest
import torch

from gossamer.handles import Handled, graph_input, living_owner_of, owner_of
from gossamer.ops.registration import load_kernel, register, register_opaque
from gossamer.testing import assert_no_recompile

BACKENDS = (None, "reference")


def append_rows(pool, rows, places):
    """Rows of a paged pool: pool[places[i]] = rows[i]."""
    pool.index_copy_(0, places, rows)


def adam_like(weights, momenta, gradients, rate):
    """Two lists that are written."""
    torch._foreach_lerp_(momenta, gradients, rate)
    torch._foreach_sub_(weights, momenta)


def define(op, schema, kernel):
    for backend in ("cpu", "reference"):
        module = ModuleType(f"gossamer.kernels.{backend}.{op}")
        vars(module)[op] = kernel
        sys.modules[module.__name__] = module
    return register(op, schema)


append_on = define("append_rows", "(Tensor(a!) pool, Tensor rows, Tensor places) -> ()", append_rows)
step_on = define(
    "adam_like", "(Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor[] gradients, float rate) -> ()", adam_like
)


def operands():
    return torch.zeros(6, 4), torch.arange(8.0).view(2, 4) + 1, torch.tensor([4, 1])


# Inductor sees an opaque operator, whatever runs in it.
@pytest.mark.parametrize(
    ("backend", "compiled"), [*itertools.product(BACKENDS, (None, "aot_eager")), (None, "inductor")]
)
def test_writes_happen_in_order(backend, compiled):
    """What is read before a write is old, what is read after it new; in a graph too, and in the caller's tensor."""

    def two_steps(pool, rows, places):
        before = pool.sum()
        append_on(backend)(pool, rows, places)
        between = pool * 3  # inductor takes a clone of a tensor that changes for the tensor, with torch's own ops too
        append_on(backend)(pool, rows * 2, places.flip(0))
        return before, between, pool.sum()

    torch.compiler.reset()
    run = two_steps if compiled is None else torch.compile(two_steps, fullgraph=True, backend=compiled)
    pool, rows, places = operands()
    before, between, after = run(pool, rows, places)
    once = torch.zeros(6, 4).index_copy(0, places, rows)
    assert before == 0 and torch.equal(between, once * 3)
    assert torch.equal(pool, once.index_copy(0, places.flip(0), rows * 2)) and after == pool.sum()


def test_other_places_need_no_other_graph():
    torch.compiler.reset()
    run = torch.compile(lambda *args: append_on(None)(*args), fullgraph=True, backend="aot_eager")
    pool, rows, places = operands()
    run(pool, rows, places)
    with assert_no_recompile():
        run(pool, rows, places - 1)
    assert pool[[0, 1, 3, 4]].any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_lists_are_written(backend, compiled):
    weights, momenta = [torch.ones(3), torch.ones(2, 2)], [torch.zeros(3), torch.zeros(2, 2)]
    gradients = [torch.full((3,), 4.0), torch.full((2, 2), 8.0)]
    weights[0].requires_grad_()
    torch.compiler.reset()
    step = step_on(backend)
    step = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
    with torch.no_grad():
        step(weights, momenta, gradients, 0.5)
    assert [w[..., 0].flatten()[0].item() for w in weights] == [-1, -3] and momenta[0].tolist() == [2, 2, 2]


def test_opcheck():
    for op, args in (
        (torch.ops.gossamer.append_rows.default, operands()),
        (torch.ops.gossamer.adam_like.default, ([torch.ones(3)], [torch.zeros(3)], [torch.ones(3)], 0.5)),
    ):
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_who_asks_for_a_gradient_is_refused(backend, compiled):
    append = append_on(backend)
    append = torch.compile(append, fullgraph=True, backend="aot_eager") if compiled else append
    for at, name in ((0, "pool"), (1, "rows")):
        args = operands()
        args[at].requires_grad_()
        torch.compiler.reset()
        with pytest.raises(RuntimeError, match=f"append_rows writes pool in place and has no gradient, but {name} req"):
            append(*args)
        assert not args[0].any()
        with torch.no_grad():
            append(*args)
        assert args[0].any()


def test_autograd_sees_the_write():
    """A backward pass that saved what was overwritten says so instead of using it."""
    pool, rows, places = operands()
    weight = torch.ones(4, requires_grad=True)
    y = (pool * weight).sum()
    append_on(None)(pool, rows, places)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_is_never_written_in_place_of_the_argument(backend):
    pool, rows, places = operands()
    with pytest.raises(ValueError, match=r"pool must be contiguous, for gossamer.ops.append_rows writes it"):
        append_on(backend)(torch.zeros(4, 6).t(), rows, places)
    append_on(backend)(pool, rows.t().contiguous().t(), places)  # what is read may lie anyhow
    assert torch.equal(pool[places], rows)


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="must return new tensors"):
        define("returns_its_argument", "(Tensor(a!) x) -> Tensor(a!)", lambda x: x)
    with pytest.raises(ValueError, match="fake must say what returns_something returns"):
        define("returns_something", "(Tensor x) -> Tensor", lambda x: x + 1)


def test_an_op_without_a_kernel_for_a_device_says_so():
    with pytest.raises(RuntimeError, match="append_rows has no kernel for backend='triton'"):
        load_kernel("triton", "append_rows", "append_rows")


# ---------------------------------------------------------------- handles


class Counter(Handled):
    def __init__(self, start: int) -> None:
        self.calls = start


class Other(Handled):
    pass


def _count(x, handle):
    owner_of(handle, Counter).calls += 1
    return x.clone()


count = register_opaque("count_calls", "(Tensor x, Tensor handle) -> Tensor", _count, lambda x, handle: x.clone())


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter(0)

    def forward(self, x):
        return count(x * 2, self.counter.handle)


def test_layers_share_a_graph_and_each_calls_its_own_object():
    torch.compiler.reset()
    layers = [Layer() for _ in range(4)]
    run = torch.compile(lambda layer, x: layer(x), fullgraph=True, backend="aot_eager")
    run(layers[0], torch.ones(3))
    with assert_no_recompile():
        for layer in layers:
            run(layer, torch.ones(3))
    assert [layer.counter.calls for layer in layers] == [2, 1, 1, 1]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_its_own_handle(duplicate):
    first = Counter(3)
    second = duplicate(first)
    assert second.calls == 3 and int(second.handle) != int(first.handle)
    assert owner_of(first.handle, Counter) is first and owner_of(int(second.handle), Counter) is second


def test_an_expired_handle_is_an_error():
    counter = Counter(0)
    handle, other = counter.handle, Other()
    del counter
    gc.collect()
    assert living_owner_of(handle, Counter) is None
    for wrong in (handle, other.handle, graph_input(0)):
        with pytest.raises(ValueError, match=f"handle must be that of a living Counter, got {int(wrong)}"):
            count(torch.ones(2), wrong)

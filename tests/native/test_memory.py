"""Large outputs: memory comes back for the next of that size when its tensor is gone, and never before."""

import subprocess
import sys

import pytest
import torch

import gossamer as gs
from gossamer.kernels.cpu import memory

AS_IT_COMES = memory._leased
LARGE = memory.NEW_MEMORY_BYTES // 4  # float32 numbers


POISONED = [
    lambda: memory.empty((64,), torch.float32),
    lambda: memory.empty((64,), torch.float64, least=0),
    lambda: memory.empty((LARGE,), torch.float32),
    lambda: memory.empty((LARGE,), torch.bfloat16, least=1),
    lambda: memory.with_slack(4 * memory.PAGE, torch.float32)[0],
]


@pytest.mark.parametrize("room", POISONED)
def test_the_tests_get_poisoned_memory(room):
    """Not the answer that lay in it last: every element shows that nobody wrote it, in a block that comes again too."""
    for _ in range(2):
        x = room()
        assert x.isnan().all()
        x.fill_(1.0)
        del x
    room, clear = memory.with_slack(4 * memory.PAGE, torch.int32)
    clear(3)
    assert room[:3].eq(-1).all() and not room[3:].any()


@pytest.fixture(autouse=True)
def nothing_kept(request, monkeypatch, always):
    """A pool of this file's own; and memory as it comes, but where the poison itself is looked at."""
    monkeypatch.setattr(memory, "KEPT", memory.Kept(4 * memory.NEW_MEMORY_BYTES))
    if request.function is not test_the_tests_get_poisoned_memory:
        monkeypatch.setattr(memory, "_leased", AS_IT_COMES)


def test_small_outputs_are_torchs_own():
    x = memory.empty((3, 5), torch.float64)
    assert x.shape == (3, 5) and x.dtype == torch.float64
    del x
    assert not memory.KEPT.blocks


@pytest.mark.parametrize("shape", [(LARGE,), (2, LARGE // 2 + 7), (3, LARGE, 1)], ids=str)
def test_memory_comes_back_when_the_last_view_is_gone(shape):
    x = memory.empty(shape, torch.float32)
    assert x.shape == shape and x.is_contiguous() and x.data_ptr() % 4096 == 0
    address, view = x.data_ptr(), x.view(-1)[-3:].fill_(7)
    del x
    assert not memory.KEPT.blocks and view.tolist() == [7, 7, 7]
    other = memory.empty(shape, torch.float32)
    assert other.data_ptr() != address
    del view
    assert len(memory.KEPT.blocks) == 1
    assert memory.empty(shape, torch.float32).data_ptr() == address


def test_a_large_result_may_be_written_in_place_where_gradients_are():
    """As a small one; torch would refuse that of a view, which an operator's own function returned."""
    x = torch.zeros(LARGE // 1024, 1024)
    x[::64] = torch.randn(len(x) // 64, 1024)
    x.requires_grad_()
    pattern = gs.Pattern.full(tuple(x.shape), (len(x) // 4, 256))
    tiles = gs.ops.gather(x, pattern)
    for y in (
        tiles.clone(),
        gs.ops.scatter(tiles, pattern),
        gs.ops.matmul(x, torch.eye(1024, requires_grad=True)),
        tiles,
    ):
        y.mul_(2)
        x.grad = None
        y.sum().backward(retain_graph=True)
        assert y.untyped_storage().nbytes() >= memory.NEW_MEMORY_BYTES and x.grad.any()


def test_another_size_takes_no_kept_block():
    del_me = memory.empty((LARGE,), torch.float32)
    del del_me
    memory.empty((2 * LARGE,), torch.float32)
    assert sorted(map(len, memory.KEPT.blocks)) == [4 * LARGE, 8 * LARGE]


def test_the_oldest_leave_above_the_limit():
    tensors = [memory.empty((LARGE + i * memory.PAGE,), torch.float32) for i in range(4)]
    sizes = [x.untyped_storage().nbytes() for x in tensors]
    while tensors:
        tensors.pop(0)
    kept = [len(block) for block in memory.KEPT.blocks]
    assert kept == sizes[-len(kept) :] and 0 < sum(kept) <= memory.KEPT.limit < sum(sizes)
    memory.KEPT.release()
    assert memory.empty((LARGE,), torch.float32).eq(0).all()


def test_a_limit_of_none_keeps_nothing():
    memory.KEPT.limit = 0
    memory.empty((LARGE,), torch.float32)
    assert not memory.KEPT.blocks


@pytest.mark.parametrize("used", [0, 1, memory.PAGE // 4 - 1, memory.PAGE // 4, memory.PAGE, LARGE])
@pytest.mark.parametrize("count", [memory.PAGE // 2, memory.PAGE + 7, LARGE], ids=str)
def test_slack_is_zero_whatever_the_last_user_wrote(count, used):
    room, clear = memory.with_slack(count, torch.float32)
    clear(0)
    assert room.shape == (count,) and not room.any()
    address = room.fill_(1.0).data_ptr()
    del room, clear
    room, clear = memory.with_slack(count, torch.float32)
    assert room.data_ptr() == address
    clear(min(used, count))
    assert room[:used].eq(1).all() and not room[used:].any()


def test_room_of_nearly_the_same_size_is_the_same_memory():
    assert memory.with_slack(2 * memory.PAGE - 1, torch.int8) is None
    address = memory.with_slack(LARGE - 1000, torch.float32)[0].data_ptr()
    assert memory.with_slack(LARGE, torch.float32)[0].data_ptr() == address
    assert len(memory.KEPT.blocks) == 1


def test_gradients_of_a_graph_are_kept_memory_and_right():
    x = torch.randn(40, 300, dtype=torch.float64)
    weights = torch.randn(80, 300, 200, dtype=torch.float64, requires_grad=True)  # 38 MB
    ids = torch.arange(40) % 3
    for _ in range(3):
        (got,) = torch.autograd.grad(gs.ops.grouped_matmul(x, weights, ids).sum(), weights)
        expected = torch.stack([x[ids == e].sum(0) for e in range(3)])
        torch.testing.assert_close(got[:3, :, 0], expected)
        assert not got[3:].any()
        del got
    assert len(memory.KEPT.blocks) == 1


def test_children_do_not_share_a_parents_tensor():
    code = """
import os, torch
from gossamer.kernels.cpu import memory
for x in (memory.empty((1 << 24,), torch.float32).zero_(), memory.with_slack(1 << 24, torch.float32)[0]):
    child = os.fork()
    if child == 0:
        x[0] = 1.0
        os._exit(0)
    os.waitpid(child, 0)
    assert x[0] == 0.0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["-1", "many", ""])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, value):
    monkeypatch.setenv("GOSSAMER_KEEP_BYTES", value)
    with pytest.raises(ValueError, match=f"GOSSAMER_KEEP_BYTES must be a number of bytes.*got '{value}'"):
        memory._limit()


def test_the_limit_can_be_given(monkeypatch):
    monkeypatch.setenv("GOSSAMER_KEEP_BYTES", "1000")
    assert memory._limit() == 1000
    monkeypatch.delenv("GOSSAMER_KEEP_BYTES")
    assert 0 < memory._limit() <= 2 << 30

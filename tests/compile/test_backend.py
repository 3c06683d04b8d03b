"""The backend by its name: options, compilations, inductor, modes, copies."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import padding_models as models
import pytest
import torch
from padding_models import WIDTH, Net, Watched, close, keys
from torch import Tensor
from torch._dynamo.utils import counters

from gossamer.compile.options import options_of


def encode(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, keys(keep))


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"min_paddin": 0.1}, ValueError, "did you mean 'min_padding'"),
        ({"min_padding": 2}, ValueError, "from 0 to 1, got 2"),
        ({"min_padding": True}, ValueError, "got True"),
        ({"min_padding": float("nan")}, ValueError, "got nan"),
        ({"passes": "padding"}, ValueError, "must be some of"),
        ({"passes": ["paddings"]}, ValueError, "must be some of"),
        ({"keep_packed": 1}, TypeError, "must be True or False, got 1"),
        ({"inductor": 1}, TypeError, "must be a mapping"),
        ({"inductor": {"no_such": 1}}, ValueError, "no_such"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        options_of(options)


def test_options_reach_the_backend_by_its_name() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="did you mean 'passes'"):
        torch.compile(torch.nn.Linear(2, 2), backend="gossamer", options={"passe": []})(torch.ones(1, 2))


@pytest.mark.parametrize("least, packed", [(0.0, True), (0.3, True), (0.9, False)])
def test_little_padding_stays(least: float, packed: bool) -> None:
    watched = Watched(Net(encode), min_padding=least)
    with torch.no_grad():
        watched.run(torch.randn(4, 10, WIDTH), models.right(4, 10))
    assert bool(watched.packed) == packed


def test_200_batches_of_random_lengths_compile_twice() -> None:
    torch.manual_seed(0)
    model = Net(encode).eval()
    watched = Watched(model)
    counters.clear()
    with torch.no_grad():
        for call in range(200):
            batch, length = (int(torch.randint(2, high, ())) for high in (6, 12))
            x, keep = torch.randn(batch, length, WIDTH), torch.rand(batch, length) < 0.7
            keep[:, 0] = True
            made = watched.run(x, keep)
            if call % 20 == 0:
                close(model(x, keep), made, keep)
            if call == 20:
                warm = sum(record.tally.compilations for record in watched.records)
    assert counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]
    assert sum(record.tally.compilations for record in watched.records) == warm
    assert watched.packed > 150


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_change_between_calls(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Net(encode).eval()
    watched = Watched(model)
    keep = models.right(3, 7)
    with torch.no_grad():
        for each in (torch.float32, dtype, torch.float32):
            for it in (model, watched.model):
                it.to(each)
            x = torch.randn(3, 7, WIDTH, dtype=each)
            one, two = model(x, keep)[keep], watched.run(x, keep)[keep]
            torch.testing.assert_close(two, one, rtol=0, atol=8 * torch.finfo(each).eps * float(one.abs().max()))
    assert watched.packed == 3


@pytest.mark.parametrize("mode", ["inference", "autocast", "autocast inside"])
def test_modes(mode: str) -> None:
    def cast(net: Net, x: Tensor, keep: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.encoded(x, keys(keep)).float()

    torch.manual_seed(0)
    model = Net(cast if mode == "autocast inside" else encode).eval()
    watched = Watched(model)
    x, keep = torch.randn(3, 7, WIDTH), models.right(3, 7)
    with torch.inference_mode(mode == "inference"), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        one, two = model(x, keep)[keep], watched.run(x, keep)[keep]
    assert one.dtype == two.dtype and one.is_inference() == two.is_inference()
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5 if mode == "inference" else 0.05 * float(one.abs().max()))


def test_copies_of_a_compiled_model_are_their_own() -> None:
    model = Net(encode).eval()
    watched = Watched(model)
    x, keep = torch.randn(3, 7, WIDTH), models.right(3, 7)
    with torch.no_grad():
        watched.run(x, keep)
        twin: Any = copy.deepcopy(watched.run)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin(x, keep)[keep].eq(model(x, keep)[keep]).all()
        close(model(x, keep), watched.run(x, keep), keep)
    assert {key.removeprefix("_orig_mod.") for key in twin.state_dict()} == set(model.state_dict())


@pytest.mark.parametrize("train", [pytest.param(True, marks=pytest.mark.slow), False])
def test_inductor_compiles_the_pieces(train: bool) -> None:
    """By name, forward and backward, and nothing anew when lengths change."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(encode).train(train)
    other = copy.deepcopy(model)
    run = torch.compile(other, backend="gossamer", dynamic=True, fullgraph=True)
    for batch, length in ((3, 7), (4, 9), (5, 12)):
        x, keep = torch.randn(batch, length, WIDTH), models.right(batch, length)
        with torch.set_grad_enabled(train):
            one, two = model(x, keep), run(x, keep)
        close(one, two, keep)
        if train:
            for each, out in ((model, one), (other, two)):
                each.zero_grad()
                (out * keep[..., None]).square().sum().backward()
            for a, b in zip(model.parameters(), other.parameters(), strict=True):
                if a.grad is not None and b.grad is not None:
                    torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4)
        if (batch, length) == (3, 7):
            counters.clear()
    assert not counters["stats"] and not counters["inductor"].get("fxgraph_cache_miss", 0)


@pytest.mark.slow
def test_a_process_that_never_imports_gossamer_finds_the_backend() -> None:
    code = """
import sys, torch
assert "gossamer" not in sys.modules
m = torch.compile(torch.nn.Linear(4, 4), backend="gossamer")
print(tuple(m(torch.ones(2, 4)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 4)", done.stderr

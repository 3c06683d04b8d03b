"""A piece compiles once for sizes that change, and never runs what was compiled for something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from gossamer.compile.pieces import MOST, Piece
from gossamer.compile.tally import Tally


def graph(function: Any, inputs: int) -> GraphModule:
    made = Graph()
    nodes = [made.placeholder(f"x{at}") for at in range(inputs)]
    made.output((made.call_function(function, tuple(nodes)),))
    return GraphModule(torch.nn.Module(), made)


def specialising(gm: GraphModule, inputs: list[Any]) -> Any:
    """A compiler that looks at sizes: small ones get other code, which is marked by a wrong sign."""
    small = bool(inputs[0].shape[0] < 8)
    return lambda *xs: tuple(-y if small else y for y in gm(*xs))


def test_one_compilation_serves_all_sizes() -> None:
    tally = Tally()
    piece = Piece(graph(torch.add, 2), [("T", 3), ("T", 3)], lambda gm, inputs: gm, tally)
    for rows in (2, 5, 99):
        x = torch.randn(rows, 3)
        assert torch.equal(piece(x, x)[0], 2 * x)
    assert tally.compilations == len(piece.variants) == 1


def test_what_a_compiler_assumed_is_checked() -> None:
    piece = Piece(graph(torch.neg, 1), [("T",)], specialising, Tally())
    for rows in (20, 3, 9, 7):
        x = torch.randn(rows)
        assert torch.equal(piece(x)[0], x if rows < 8 else -x)
    assert len(piece.variants) == 2


@pytest.mark.parametrize("rows", [0, 1])
def test_sizes_that_torch_takes_for_numbers_run_as_they_are(rows: int) -> None:
    piece = Piece(graph(torch.neg, 1), [("T",)], specialising, Tally())
    x = torch.randn(rows)
    assert torch.equal(piece(x)[0], -x)
    assert not piece.variants


def test_dtypes_and_gradients_are_compiled_for_each() -> None:
    piece = Piece(graph(torch.neg, 1), [("T",)], lambda gm, inputs: gm, Tally())
    x = torch.ones(3)
    for each in (x, x.double(), x.clone().requires_grad_()):
        assert torch.equal(piece(each)[0], -each)
    with torch.no_grad():
        piece(x)
    assert len(piece.variants) == 4


def test_there_is_an_end_to_variants() -> None:
    tally = Tally()
    piece = Piece(graph(torch.add, 2), [("T",), None], lambda gm, inputs: gm, tally)
    for factor in range(MOST + 3):
        assert torch.equal(piece(torch.ones(2), float(factor))[0], torch.full((2,), 1.0 + factor))
    assert tally.compilations == MOST


def test_strides_are_one_whatever_comes() -> None:
    seen: list[tuple[int, ...]] = []

    def compiler(gm: GraphModule, inputs: list[Any]) -> Any:
        return lambda x: seen.append(x.stride()) or gm(x)

    piece = Piece(graph(torch.neg, 1), [("T", 4)], compiler, Tally())
    for x in (torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(3, 8)[:, ::2]):
        assert isinstance(x, Tensor) and torch.equal(piece(x)[0], -x)
    assert seen == [(4, 1)] * 3


def test_what_repeats_is_not_copied() -> None:
    seen: list[Tensor] = []

    def compiler(gm: GraphModule, inputs: list[Any]) -> Any:
        return lambda x: seen.append(x) or gm(x)

    piece = Piece(graph(torch.neg, 1), [("T", "heads", 4)], compiler, Tally())
    once = torch.randn(3, 1, 4)
    for x in (
        once.expand(3, 5, 4),
        once.expand(3, 6, 4),
        torch.randn(3, 5, 4),
        torch.randn(4, 1, 3).permute(2, 1, 0).expand(3, 5, 4),
    ):
        assert torch.equal(piece(x)[0], -x)
    assert [x.data_ptr() == once.data_ptr() for x in seen] == [True, True, False, False]
    assert len(piece.variants) == 2


def test_a_compiler_that_fails_leaves_nothing_behind() -> None:
    def compiler(gm: GraphModule, inputs: list[Any]) -> Any:
        if full:
            raise OSError("no space left on the device of inductor's cache")
        return gm

    tally, full = Tally(), True
    piece = Piece(graph(torch.neg, 1), [("T",)], compiler, tally)
    for _ in range(MOST + 1):
        with pytest.raises(OSError, match="no space left"):
            piece(torch.ones(3))
    full = False
    assert torch.equal(piece(torch.ones(3))[0], -torch.ones(3)) and tally.compilations == 1

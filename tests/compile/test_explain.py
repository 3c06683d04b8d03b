"""What `explain` says, and that it leaves a model as it was."""

from __future__ import annotations

import padding_models as models
import pytest
import torch
from padding_models import WIDTH, Net, keys
from torch import Tensor

import gossamer as gs


def encode(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return net.encoded(x, keys(keep))


def mean(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    return encode(net, x, keep).mean(1)


def breaks(net: Net, x: Tensor, keep: Tensor) -> Tensor:
    x = net.blocks[0](x, keys(keep))
    torch._dynamo.graph_break()
    return net.blocks[1](x, keys(keep))


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 10, WIDTH), models.right(4, 10)


@pytest.mark.parametrize(
    "body, says",
    [
        (encode, ("1 calls", "padding", "b s", "Y[b,s,")),
        (mean, ("padding stays", "mean runs over the tokens")),
        (breaks, ("graph 1 of 2", "the graph breaks off here", "Call to `torch._dynamo.graph_break()`")),
    ],
)
def test_says_what_becomes_of_a_model(body: models.Body, says: tuple[str, ...]) -> None:
    torch._dynamo.reset()
    model = Net(body).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text = str(gs.compile.explain(model, example()))
    assert all(each in text for each in says), text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_examples_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="example must be a tensor, a tuple of arguments or a mapping"):
        gs.compile.explain(torch.nn.Linear(2, 2), [1])


def test_a_line_that_breaks_the_graph_is_named_once() -> None:
    def inner(x: Tensor) -> Tensor:
        x = x * 2
        torch._dynamo.graph_break()
        return x + 1

    def outer(x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1
        return inner(x)

    torch._dynamo.reset()
    found = gs.compile.explain(outer, torch.ones(2))
    assert [why for why, _ in found.breaks] == [
        "Python branches on what a tensor holds", "Call to `torch._dynamo.graph_break()`"
    ]  # fmt: skip
    assert all(f"graph break at {where}: {why}" in str(found) for why, where in found.breaks)
    assert found.breaks[1][1].startswith(__file__) and found.breaks[0][1] != found.breaks[1][1]

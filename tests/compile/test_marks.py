"""mark_sparse changes nothing but what the compiler knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(gs.compile.mark_sparse(y * (y > 0.5), axis=-1))


def test_a_marked_tensor_is_the_same_and_has_its_gradient() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = gs.compile.mark_sparse(x, axis=0)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 4))


@pytest.mark.parametrize("backend", ["eager", "gossamer"])
def test_a_model_with_marks_answers_as_without(backend: str) -> None:
    torch._dynamo.reset()
    model, x = Product().eval(), torch.randn(300, 256)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), expected, rtol=0, atol=1e-4)


def test_a_module_is_marked_until_the_handle_is_removed() -> None:
    layer = nn.ReLU()
    handle = gs.compile.mark_sparse(layer, axis=1)
    assert len(layer._forward_hooks) == 1
    assert torch.equal(layer(torch.ones(2, 2)), torch.ones(2, 2))
    handle.remove()
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    "it, axis, error, says",
    [
        (torch.ones(2, 3), 2, IndexError, "axis must be from -2 to 1"),
        (torch.ones(2, 3), True, TypeError, "axis must be an integer, got True"),
        (torch.ones(2, 3), 0.5, TypeError, "axis must be an integer, got 0.5"),
        ([1], 0, TypeError, "takes a tensor or a module, got list"),
    ],
)
def test_marks_that_are_none(it: object, axis: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gs.compile.mark_sparse(it, axis=axis)


def test_a_module_that_returns_no_tensor_says_so() -> None:
    layer = nn.LSTM(2, 2)
    gs.compile.mark_sparse(layer)
    with pytest.raises(TypeError, match="LSTM returned tuple"):
        layer(torch.ones(1, 1, 2))

"""torch.set_default_dtype is the user's, for what the user makes: nothing here is of another type because of it.

A buffer that was made without saying its type was half as large as the kernel took it to be.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from backends import CPU, on
from table import ROWS, SIZES, Drawn
from test_every_op import copied

import gossamer as gs
from gossamer.testing import assert_same_bits

MAKERS = {"empty", "zeros", "ones", "full", "rand", "randn", "linspace", "logspace", "eye"}
THEIRS = ("models", "bench", "testing", "cli/tour")  # networks, and programs that make the numbers of a user
DTYPES = (torch.bfloat16, torch.float64)


def _without_type(call: ast.AST) -> bool:
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in MAKERS
        and ast.unparse(call.func.value) == "torch"
        and not any(keyword.arg in ("dtype", "out", None) for keyword in call.keywords)
    )


def test_whoever_makes_numbers_says_their_type():
    root = Path(gs.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}"
        for path in sorted(root.rglob("*.py"))
        if not str(path.relative_to(root)).startswith(THEIRS)
        for node in ast.walk(ast.parse(path.read_text()))
        if _without_type(node)
    ]
    assert not found, "\n".join(found)


@on(CPU, "row", ROWS)
def test_ops_do_not_look_at_it(backend, row):
    args = row.arguments(Drawn(*SIZES[0]))
    expected = backend.results(row.op, copied(args, row.writes), row.writes)
    for dtype in DTYPES:
        torch.set_default_dtype(dtype)
        found = backend.results(row.op, copied(args, row.writes), row.writes)
        torch.set_default_dtype(torch.float32)
        for got, exact in zip(found, expected, strict=True):
            assert_same_bits(got, exact)


def _classified() -> torch.Tensor:
    texts, sets = ["a red apple", "a green pear", "red wine"] * 4, [[0, 2], [1], [0]] * 4
    classifier = gs.xmc.Classifier("bow", encoder_settings={"width": 8}, fan_in=4, epochs=3, batch_size=6)
    return classifier.fit(texts, sets).predict_topk(texts[:3], k=2)[0]


def _trained() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(8, 8, generator=generator, dtype=torch.float32) for _ in range(13)]
    net = torch.nn.Linear(8, 8, bias=False, dtype=torch.float32)
    net.weight.data.copy_(draw[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = gs.training.RigL(net, optimizer, density=0.3, total_steps=12, update_every=3, seed=0)
    for x in draw[1:]:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    method.detach()
    return net.weight.detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("made", [_classified, _trained])
def test_what_is_made_over_many_steps_does_not_either(made, dtype):
    expected = made()
    torch.set_default_dtype(dtype)
    assert_same_bits(made(), expected)


def test_fitting_leaves_the_users_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _classified()
    assert torch.equal(torch.rand(3), expected)

"""What a whole process is set to is the user's: nothing here is another number because of it, and it stays as it was.

A buffer that was made without saying its type was half as large as the kernel took it to be; one that was made without
saying its device had no memory at all. And whoever told torch by its newer names how float32 is multiplied got an error
from the older ones.
"""

from __future__ import annotations

import ast
import contextlib
import warnings
from pathlib import Path

import pytest
import torch
from backends import CPU, on
from table import ROWS, SIZES, Drawn
from test_every_op import copied
from torch import nn

import gossamer as gs
from gossamer.testing import assert_same_bits

TYPED = {"empty", "zeros", "ones", "full", "rand", "randn", "linspace", "logspace", "eye"}
PLACED = TYPED | {"arange", "as_tensor", "asarray", "empty_strided", "randint", "randperm", "tensor", "tril_indices"}
THEIRS = ("models", "bench", "testing", "cli/tour")  # networks, and programs that make the numbers of a user
BACKENDS = torch.backends


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def precision(place, value):
    """Torch's newer names for how float32 is multiplied; its older ones then raise."""
    before = place.fp32_precision
    place.fp32_precision = value
    try:
        yield
        assert place.fp32_precision == value
    finally:
        place.fp32_precision = before


DEFAULTS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    # What has no memory on this device, as what lies on another has none that a kernel for CPUs could read.
    "device": lambda: torch.device("meta"),
}
SETTINGS = DEFAULTS | {
    "tf32": lambda: precision(BACKENDS.cuda.matmul, "tf32"),
    "exact convolutions": lambda: precision(BACKENDS.cudnn.conv, "ieee"),
    "bf16 on CPUs": lambda: precision(BACKENDS.mkldnn.matmul, "bf16"),
    "warnings are errors": lambda: warnings.catch_warnings(action="error"),
}


def unsaid(call: ast.AST) -> list[str]:
    """What a call that makes a tensor leaves to the process."""
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "torch"
        and call.func.attr in PLACED
    ):
        return []
    said = {keyword.arg for keyword in call.keywords}
    if said & {"out", None}:
        return []
    return [
        name
        for name, makers in (("dtype", TYPED), ("device", PLACED))
        if call.func.attr in makers - said and name not in said
    ]


def test_whoever_makes_numbers_says_their_type_and_where_they_lie():
    root = Path(gs.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}: {missing}"
        for path in sorted(root.rglob("*.py"))
        if not str(path.relative_to(root)).startswith(THEIRS)
        for node in ast.walk(ast.parse(path.read_text()))
        if (missing := unsaid(node))
    ]
    assert not found, "\n".join(found)


@on(CPU, "row", ROWS)
def test_ops_do_not_look_at_defaults(backend, row):
    args = row.arguments(Drawn(*SIZES[0]))
    expected = backend.results(row.op, copied(args, row.writes), row.writes)
    for setting in DEFAULTS.values():
        given = copied(args, row.writes)
        with setting():
            found = backend.results(row.op, given, row.writes)
        for got, exact in zip(found, expected, strict=True):
            assert_same_bits(got, exact)


PLAIN = {"dtype": torch.float32, "device": "cpu"}  # what a user who has other defaults says


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **PLAIN)


def linear(inputs, outputs, cls=nn.Linear):
    layer = cls(inputs, outputs, bias=False, **PLAIN)
    layer.weight.data.copy_(drawn(outputs, inputs) / inputs**0.5)
    return layer


def multiplied():
    x = drawn(256, 512)
    x[::2] = 0
    return [gs.ops.matmul(x, drawn(512, 128, seed=1)), linear(512, 512, gs.nn.Linear)(x)]


def block_sparse():
    x = drawn(8, 128).requires_grad_()
    layer = gs.nn.BlockSparseLinear.from_dense(linear(128, 64), density=0.3, block=16)
    layer(x).square().sum().backward()
    return [x.grad, layer.values.grad]


def skipped():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False, **PLAIN), nn.ReLU(), nn.Flatten(), linear(512, 8))
    net[0].weight.data.copy_(drawn(8, 8, 3, 3))
    gs.nn.skip_zeros(net)
    net(drawn(2, 8, 8, 8)).square().sum().backward()
    return [net[0].weight.grad, net[3].weight.grad]


def thresholded():
    net = nn.Sequential(linear(64, 96), nn.SiLU(), linear(96, 64), linear(64, 10))
    report = gs.nn.threshold(net, [drawn(16, 64, seed=seed) for seed in range(2)], 0.5, reorder=True)
    y = net(drawn(1, 64)).detach()
    report.undo()
    return [y]


def trained_and_compacted():
    net = nn.Sequential(linear(16, 32), nn.ReLU(), linear(32, 8))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = gs.training.Chase(
        net, optimizer, density=0.3, channel_sparsity=0.4, total_steps=12, explore_every=3, channel_every=3, seed=0
    )
    for seed in range(12):
        optimizer.zero_grad()
        net(drawn(8, 16, seed=seed)).square().mean().backward()
        optimizer.step()
    method.detach()
    small = gs.compact(net, drawn(2, 16), optimizer=optimizer, round_to=None, check_latency=False)
    assert small.model[0].out_features < 32
    return [net[0].weight.detach(), small.model[0].weight.detach()]


def fan_in():
    head = gs.xmc.FusedHead(64, 100, fan_in=8, device="cpu")
    layer = gs.nn.FanInLinear(64, 32, fan_in=8, seed=0, **PLAIN)
    grad, _ = head.step(drawn(2, 64), [[3, 99], []], 0.1)
    return [grad, head.values, head.topk(drawn(2, 64), k=3)[1], layer(drawn(2, 64)).detach()]


def classified():
    texts, sets = ["a red apple", "a green pear", "red wine"] * 4, [[0, 2], [1], [0]] * 4
    classifier = gs.xmc.Classifier("bow", encoder_settings={"width": 8}, fan_in=4, epochs=3, batch_size=6)
    return [classifier.fit(texts, sets).predict_topk(texts[:3], k=2)[0]]


def served():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for at, parameter in enumerate(model.parameters()):
        if parameter.dim() == 2:
            parameter.data.copy_(drawn(*parameter.shape, seed=at) / 6)
    text, sampling = [7, 3, 5] * 70, gs.serving.Sampling(max_tokens=4)
    tokens = gs.serving.LLM(model, sparsity=gs.serving.Sparsity(token_budget=192)).generate([text, text[:9]], sampling)
    radial = gs.routing.Radial(model, mode="skip", kv="sparse").eval()
    with torch.no_grad():
        logits = radial(torch.tensor([text[:12]], device="cpu")).logits
    return [torch.tensor([each.tokens for each in tokens], device="cpu"), logits]


MADE = (multiplied, block_sparse, skipped, thresholded, trained_and_compacted, fan_in, classified, served)


@pytest.fixture(scope="module")
def expected():
    return {made: made() for made in MADE}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("made", MADE)
def test_what_is_made_does_not_either(made, setting, expected):
    # Products that torch does itself are rounded as the user told it to; and with a default device it does them all.
    bound = 0.05 if setting == "bf16 on CPUs" else 1e-4
    with SETTINGS[setting]():
        found = made()
    for got, exact in zip(found, expected[made], strict=True):
        torch.testing.assert_close(got, exact, rtol=bound, atol=bound)


def test_fitting_leaves_the_users_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    classified()
    assert torch.equal(torch.rand(3), before)

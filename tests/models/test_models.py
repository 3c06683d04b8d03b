"""Every network by name runs, learns in every layer, and is written so that parts of it can be cut out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.models.vit import Attention, Block

SMALL = {"mlp": {}, "convnet": {"widths": (8, 12)}, "resnet20": {"width": 4}, "resnet34": {"width": 4},
         "resnet50": {"width": 4}, "fixup_resnet50": {"width": 8}, "vgg16": {}, "vgg16_plain": {},
         "vit": {"dim": 16, "depth": 2, "heads": 2}}  # fmt: skip


@pytest.mark.parametrize("name", gs.models.names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 12)])
def test_logits_and_gradients_reach_everything(name: str, shape: tuple[int, ...]) -> None:
    model = gs.models.build(name, input_shape=shape, classes=7, **SMALL[name])
    for parameter in model.parameters():  # what starts at zero hides what lies behind it
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A convolution bias in front of BatchNorm or softmax-invariant key biases would show up here.
    assert [n for n in untouched if not n.endswith("key.bias")] == []


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("resnet20", (3, 32, 32), 10, 272_474),
        ("resnet34", (3, 224, 224), 1000, 21_797_672),
        ("resnet50", (3, 224, 224), 1000, 25_557_032),
        # ResNet-50 without its 53,120 of BatchNorm; 7 scalars a block, 1 for each of 4 shortcuts, 2 outside.
        ("fixup_resnet50", (3, 224, 224), 1000, 25_557_032 - 53_120 + 16 * 7 + 4 + 2),
        ("vgg16", (3, 224, 224), 1000, 138_365_992 - 4_224),  # BatchNorm makes the 4224 conv biases idle
        ("vgg16_plain", (3, 224, 224), 1000, 138_357_544),
    ],
)
def test_parameters_of_the_published_networks(name: str, shape: tuple[int, ...], classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = gs.models.build(name, input_shape=shape, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet50_has_its_stride_in_the_3x3() -> None:
    with torch.device("meta"):
        model = gs.models.resnet50((3, 224, 224), 1000)
    strided = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == ["stem.0"] + [f"stages.{i}.0.{part}" for i in (1, 2, 3) for part in ("conv2", "shortcut.0")]


def test_attention_is_the_textbook_formula() -> None:
    attention = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out = torch.zeros(2, 5, 12, dtype=torch.float64)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (layer(x)[..., part] for layer in (attention.query, attention.key, attention.value))
        out[..., part] = torch.softmax(q @ k.transpose(1, 2) / 2.0, -1) @ v
    torch.testing.assert_close(attention(x), attention.out(out), rtol=1e-12, atol=1e-12)


def _keep_rows(layer: nn.Linear, keep: torch.Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[keep])
    layer.bias = nn.Parameter(layer.bias[keep])
    layer.out_features = len(layer.weight)


def test_a_head_and_hidden_neurons_can_be_cut_out_of_a_block() -> None:
    block = Block(12, 3, 8).double()
    with torch.no_grad():
        block.attention.out.weight[:, 4:8] = 0
        block.down.weight[:, 5:] = 0
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    before = block(x)
    heads = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    for layer in (block.attention.query, block.attention.key, block.attention.value):
        _keep_rows(layer, heads)
    block.attention.out.weight = nn.Parameter(block.attention.out.weight[:, heads])
    _keep_rows(block.up, torch.arange(5))
    block.down.weight = nn.Parameter(block.down.weight[:, :5])
    assert block.attention.num_heads == 2
    torch.testing.assert_close(block(x), before, rtol=1e-12, atol=1e-12)


FILE = """
import torch
def plain():
    return torch.nn.Linear(2, 3)
def sized(classes, input_shape, depth=1):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[0], classes * depth))
def number():
    return 3
def fails(classes):
    raise RuntimeError("no luck")
NOT_CALLABLE = 5
"""


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_networks.py").write_text(FILE)
    (tmp_path / "broken_networks.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "my_networks.py"
    sys.modules.pop("my_networks", None)


def test_a_file_is_imported_once(user_file: Path) -> None:
    user_file.write_text(FILE + "class Net(torch.nn.Linear):\n    def __init__(self): super().__init__(2, 3)\n")
    one, other = (gs.models.build(f"{user_file}:Net", (2,), 3) for _ in range(2))
    assert type(one) is type(other)


def test_a_factory_of_ones_own_from_a_module_and_from_a_file(user_file: Path) -> None:
    for place in ("my_networks", str(user_file)):
        assert gs.models.build(f"{place}:plain", (2,), 3).out_features == 3
        assert gs.models.build(f"{place}:sized", (2,), 3, depth=2)[1].out_features == 6


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet51", r"'resnet51'; expected one of mlp, convnet, resnet20, resnet34, .*, vit, module:factory"),
        ("", r"model is ''"),
        (":plain", r"model is ':plain'"),
        ("my_networks:nothing", r"my_networks has no 'nothing'"),
        ("my_networks:NOT_CALLABLE", r"is a int, not callable"),
        ("my_networks:number", r"returned a int"),
        ("my_networks:fails", r"RuntimeError: no luck"),
        ("broken_networks:plain", r"no_such_module_anywhere"),
        ("no/such/file.py:plain", r"there is no file .*no/such/file.py"),
    ],
)
def test_what_cannot_be_built_says_why(user_file: Path, model: str, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        gs.models.build(model, input_shape=(2,), classes=3)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "said"),
    [
        ("convnet", (8, 8), 10, {}, r"\(8, 8\); convnet expects \(channels, height, width\)"),
        ("mlp", (0,), 10, {}, r"input_shape is \(0,\)"),
        ("mlp", (4,), 0, {}, "classes is 0"),
        ("vit", (1, 8, 8), 10, {"patch": 3}, "patch is 3"),
        ("vit", (1, 8, 8), 10, {"heads": 3}, "heads is 3"),
        ("mlp", (4,), 2, {"width": 3}, "unexpected keyword argument 'width'"),
    ],
)
def test_bad_arguments(name: str, shape: tuple[int, ...], classes: int, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gs.models.build(name, input_shape=shape, classes=classes, **options)

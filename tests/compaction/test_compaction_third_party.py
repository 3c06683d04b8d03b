"""Law: models nobody here wrote compact exactly, in every group that no barrier holds.

Built from small configurations of the transformers library with random weights; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.compaction import ChannelGraph, zero_channels_

tf = pytest.importorskip("transformers")

IMAGE = (2, 3, 32, 32)
IDS = torch.arange(12).reshape(2, 6)
TEXT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24
}  # fmt: skip

# name -> (model, inputs, removable groups, what explain() says about the rest)
MODELS: dict[str, tuple[Callable[[], nn.Module], str, int, str]] = {
    "resnet": (
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=5)
        ), "image", 9, "graph output",
    ),
    "regnet": (
        lambda: tf.RegNetForImageClassification(
            tf.RegNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=4, num_labels=5)
        ), "image", 7, "graph output",
    ),
    "convnext": (
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=5, image_size=32)
        ), "image", 2, "normalises over this axis",
    ),
    "mobilenet": (
        lambda: tf.MobileNetV2ForImageClassification(
            tf.MobileNetV2Config(depth_multiplier=0.25, num_labels=5, image_size=32)
        ), "image", 25, "graph output",
    ),
    "efficientnet": (
        lambda: tf.EfficientNetForImageClassification(
            tf.EfficientNetConfig(
                width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320, num_labels=5, image_size=32,
                in_channels=[32, 16], out_channels=[16, 24], kernel_sizes=[3, 5], strides=[1, 2],
                num_block_repeats=[1, 1], expand_ratios=[1, 6],
            )
        ), "image", 7, "graph output",
    ),
    "vit": (
        lambda: tf.ViTForImageClassification(
            tf.ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24, image_size=32,
                patch_size=8, num_labels=5,
            )
        ), "image", 2, "normalises over this axis",
    ),
    "bert": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(max_position_embeddings=16, num_labels=5, **TEXT)),
        "text", 3, "normalises over this axis",
    ),
    "llama": (
        lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(max_position_embeddings=16, num_key_value_heads=2, use_cache=False, **TEXT)
        ), "ids", 2, "mean in model.layers.0.input_layernorm reduces over this axis",
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=4, n_positions=16, use_cache=False)
        ), "ids", 2, "normalises over this axis",
    ),
}  # fmt: skip


def inputs(kind: str) -> dict[str, Tensor]:
    if kind == "image":
        return {"pixel_values": torch.randn(IMAGE)}
    return {"input_ids": IDS} | ({"attention_mask": torch.ones_like(IDS)} if kind == "text" else {})


def randomised(model: nn.Module) -> None:
    """Initial values of these models are close to degenerate (layer scale 1e-6, zero biases, unit statistics)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))


# Depthwise convolutions are in efficientnet too.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "mobilenet" else []) for n in MODELS]
)
def test_compacts_exactly_or_names_the_barrier(name: str) -> None:
    build, kind, removable, barrier = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    randomised(model)
    x: dict[str, Any] = inputs(kind)
    graph = ChannelGraph.build(model, x)
    assert len(graph.removable) == removable, graph.explain()
    keep = {g.name: torch.arange(g.channels) % 3 != 1 for g in graph.removable}
    zero_channels_(model, graph, keep)
    small = gs.compact(model, x, round_to=None, check_latency=False)

    assert not small.unfit and barrier in small.explain()
    assert {key: value["after"] for key, value in small.report["channels"].items()} == {
        key: int(mask.sum()) for key, mask in keep.items()
    }
    fresh = inputs(kind)
    with torch.no_grad():
        expected, found = model(**fresh).logits, small.model(**fresh).logits
    assert expected.std() > 1e-3
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()

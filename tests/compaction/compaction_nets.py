"""The table: one small network per topology, with the channel groups it must have.

`groups` = {name: (channels, unit)} of every removable group; `integer` networks have no operator that leaves the
integers, so that their compaction can be compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from compaction_sequences import Encoder, GatedMLP, GroupedQueries, MiniViT, Mixer, Recurrent
from compaction_topologies import (
    Chunked,
    Concat,
    ConcatSame,
    Dense,
    Flat,
    Grouped,
    GroupNormed,
    Mystery,
    Normed,
    Padded,
    Renormed,
    Residual,
    ResNeXt,
    Sequence,
    SharedModule,
    Shuffle,
    Sloped,
    SqueezeExcite,
    Tied,
    Transposed,
    Upscaled,
    Volume,
)
from torch import Tensor, nn

IMAGE = (2, 3, 8, 8)


def frozen_sequence() -> nn.Module:
    net = Sequence()
    for parameter in net.conv1.parameters():
        parameter.requires_grad_(False)
    return net


def image() -> Tensor:
    return torch.randint(-3, 4, IMAGE).double()


def tokens() -> Tensor:
    return torch.randint(-3, 4, (2, 5, 6)).double()


def wide_tokens() -> Tensor:
    return torch.randint(-3, 4, (2, 5, 8)).double()


def ids() -> Tensor:
    return torch.randint(0, 11, (2, 5))


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: dict[str, tuple[int, int]]
    integer: bool = True
    kinds: dict[str, str] = field(default_factory=dict)  # groups that are not "inner"
    more_by_fx: dict[str, tuple[int, int]] = field(default_factory=dict)  # groups only the finer graph shows


VIT = {"attn.qkv": (4, 9), "up": (20, 1)}
NETS: dict[str, Net] = {
    "sequence": Net(Sequence, image, {"conv1": (8, 1), "conv2": (12, 1)}),
    "frozen": Net(frozen_sequence, image, {"conv1": (8, 1), "conv2": (12, 1)}),
    "residual": Net(
        Residual, image, {"stem": (8, 1), "a": (6, 1), "c": (10, 1)}, kinds={"stem": "residual", "c": "residual"}
    ),
    "depthwise": Net(lambda: Grouped(16), image, {"up": (16, 1)}),
    "depthwise x2": Net(lambda: Grouped(16, multiplier=2), image, {"up": (16, 2)}),
    "grouped 2": Net(lambda: Grouped(2), image, {"up": (2, 8)}),
    "grouped 4": Net(lambda: Grouped(4), image, {"up": (4, 4)}),
    "resnext": Net(ResNeXt, image, {"stem": (8, 1), "a": (3, 4)}, integer=False, kinds={"stem": "residual"}),
    "concat": Net(Concat, image, {"a": (5, 1), "b": (6, 1)}),
    "concat same": Net(ConcatSame, image, {"a": (6, 2)}),
    "chunked": Net(Chunked, tokens, {"a": (6, 2), "b": (4, 2)}, kinds={"a": "residual", "b": "residual"}),
    "shuffle": Net(Shuffle, image, {"a": (6, 2)}),
    "flat": Net(Flat, image, {"a": (7, 36)}),
    "shared": Net(SharedModule, tokens, {"a": (8, 1)}),
    "vit": Net(MiniViT, image, VIT, integer=False, kinds={"attn.qkv": "heads"}),
    "vit matmul": Net(lambda: MiniViT("matmul"), image, VIT, integer=False, kinds={"attn.qkv": "heads"}),
    "vit einsum": Net(lambda: MiniViT("einsum"), image, VIT, integer=False, kinds={"attn.qkv": "heads"}),
    "gqa": Net(lambda: GroupedQueries(True), wide_tokens, {"q": (2, 12)}, integer=False, kinds={"q": "heads"}),
    "gqa repeat": Net(lambda: GroupedQueries(False), wide_tokens, {"q": (2, 12)}, integer=False, kinds={"q": "heads"}),
    "squeeze": Net(SqueezeExcite, image, {"a": (8, 1), "down": (4, 1)}, integer=False),
    "glu": Net(GatedMLP, tokens, {"gate": (10, 1), "down": (6, 1), "packed": (7, 2)}, integer=False),
    "transposed": Net(Transposed, image, {"mid": (8, 1), "enc": (2, 3), "dec": (2, 3)}),
    "groupnorm": Net(GroupNormed, image, {"a": (4, 3)}, integer=False),
    "layernorm": Net(Normed, tokens, {"b": (7, 1)}, integer=False),
    "mystery": Net(Mystery, tokens, {"b": (7, 1)}, integer=False),
    "prelu": Net(Sloped, image, {"a": (8, 1)}),
    "tied": Net(Tied, ids, {"embed": (8, 1)}, kinds={"embed": "residual"}),
    "dense": Net(
        Dense, image, {"stem": (6, 1), "layers.0": (4, 1), "layers.1": (4, 1), "layers.2": (4, 1)}
    ),
    "padded": Net(Padded, image, {"stem": (6, 1)}, kinds={"stem": "residual"}),
    "upscaled": Net(Upscaled, image, {"a": (3, 4), "b": (6, 1)}),
    "encoder": Net(Encoder, wide_tokens, {"layer.linear1": (12, 1)}, integer=False),
    "recurrent": Net(
        Recurrent, tokens, {"b": (9, 1)}, integer=False, more_by_fx={"a": (8, 1), "gru": (7, 3)}
    ),
    "mixer": Net(Mixer, image, {"patch": (8, 1), "t1": (10, 1), "c1": (12, 1)}, kinds={"patch": "residual"}),
    "volume": Net(Volume, image, {"a": (6, 1)}),
    "renormed": Net(Renormed, image, {"a": (8, 1)}, integer=False),
}  # fmt: skip

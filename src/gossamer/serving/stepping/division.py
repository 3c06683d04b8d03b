"""A decoder divided among ranks: each has some key heads of every layer, with their queries, and some neurons.

    mine = deal(costs(geometry, parts, length), ranks.size)[ranks.rank]     # its key heads, for each layer
    part = divided(model, geometry, mine, ranks)                            # its weights of attention and MLPs

Two sums over the ranks per layer, behind attention and behind the MLP, make a pass of all parts one of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.ranks import Ranks
from gossamer.serving.geometry import Geometry
from gossamer.serving.sparsity import Part
from gossamer.serving.tally import seen

FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""model_type of those whose layers are known to be of independent heads and neurons, in linear layers of their own."""
TYPICAL = 8192
"""Tokens of the texts for which ranks have equal work, where nothing says how long texts are."""
_INPUTS, _MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


def share(
    model: Any, geometry: Geometry, parts: Sequence[Sequence[Part]], longest: int | None, ranks: Ranks
) -> tuple[Any, Geometry, tuple[tuple[Part, ...], ...]]:
    """This rank's part of a model, with the geometry and the parts of its own heads.

    Args:
        parts: what the heads of each layer see. longest: tokens of texts; None: what the model was made for.

    Raises:
        ValueError: as `check_divisible`, in all ranks.
    """
    check_divisible(model, geometry, ranks.size)
    mine = deal(costs(geometry, parts, longest or geometry.longest or TYPICAL), ranks.size)[ranks.rank]
    return divided(model, geometry, mine, ranks), *narrowed(geometry, parts, mine)


def deal(costs: Sequence[Sequence[float]], ranks: int) -> list[list[list[int]]]:
    """Key heads for ranks: as many for each in every layer, but for one, and about the same cost in all of them.

    The dearest heads of a layer are dealt first, each to a rank with the fewest heads there, of these to the one that
    has the least to do so far. With heads of two costs each rank is within one head's cost of the mean.

    Args:
        costs: [layers][key heads].

    Returns:
        [ranks][layers]: heads, ascending.

    Source: the rule of the longest first (Graham 1969, "Bounds on multiprocessing timing anomalies").

    >>> deal([[8, 1, 1], [8, 8, 1]], 2)
    [[[0], [1]], [[1, 2], [0, 2]]]
    """
    hands: list[list[list[int]]] = [[[] for _ in costs] for _ in range(ranks)]
    spent = [0.0] * ranks
    for layer, heads in enumerate(costs):
        for head in sorted(range(len(heads)), key=lambda head: -heads[head]):
            to = min(range(ranks), key=lambda rank: (len(hands[rank][layer]), spent[rank]))
            hands[to][layer].append(head)
            spent[to] += heads[head]
        for hand in hands:
            hand[layer].sort()
    return hands


def costs(geometry: Geometry, parts: Sequence[Sequence[Part]], length: int) -> list[list[float]]:
    """Keys that each key head sees in a text of so many tokens, [layers][key heads], in numbers of its width."""
    made = []
    for shape, some in zip(geometry.layers, parts, strict=True):
        heads = [0.0] * shape.key_heads
        for part in some:
            for head in part.heads.tolist():
                heads[head] = float(seen(part.view, length) * shape.width)
        made.append(heads)
    return made


def narrowed(
    geometry: Geometry, parts: Sequence[Sequence[Part]], mine: Sequence[Sequence[int]]
) -> tuple[Geometry, tuple[tuple[Part, ...], ...]]:
    """Geometry and parts of a rank's own heads, which are numbered among themselves."""
    layers, kept = [], []
    for shape, some, heads in zip(geometry.layers, parts, mine, strict=True):
        layers.append(replace(shape, key_heads=len(heads)))
        here = []
        for part in some:
            own = [at for at, head in enumerate(heads) if head in part.heads.tolist()]
            first = bool(own) and heads[own[0]] == int(part.heads.min())
            if own:
                here.append(replace(part, heads=torch.tensor(own, device="cpu"), first=first))
        kept.append(tuple(here))
    return replace(geometry, layers=tuple(layers)), tuple(kept)


def check_divisible(model: Any, geometry: Geometry, ranks: int) -> None:
    """Refuse what cannot be divided among so many ranks.

    Raises:
        ValueError: a family that is not known, layers that are not as that family has them, or too few heads.
    """
    name, kind = type(model).__name__, getattr(model.config, "model_type", None)
    if kind not in FAMILIES or isinstance(getattr(model, "geometry", None), Geometry):
        routed = " whose tokens choose their layers" if kind in FAMILIES else ""
        raise ValueError(f"{name}{routed} cannot be divided among {ranks} ranks, expected one of {', '.join(FAMILIES)}")
    fewest = min(geometry.key_heads)
    if ranks > fewest:
        raise ValueError(
            f"{name} has layers of {fewest} key heads, got {ranks} ranks to divide them: expected at most {fewest}"
        )
    linear = {f"{child}.{kind}" for child in (*_INPUTS, "o_proj") for kind in ("weight", "bias")}
    for at, (layer, shape) in enumerate(zip(model.base_model.layers, geometry.layers, strict=True)):
        where = f"layer {at} of {name}"
        for module, children in ((layer.self_attn, (*_INPUTS, "o_proj")), (layer.mlp, _MLP)):
            for child in children:
                found = type(getattr(module, child, None))
                if found is not nn.Linear:
                    raise ValueError(f"{where} has a {found.__name__} as {child}, expected a plain Linear to divide")
        for child, weight in layer.self_attn.named_parameters():
            if child not in linear and tuple(weight.shape) != (shape.width,):
                raise ValueError(
                    f"{where} has {child} of shape {list(weight.shape)}, expected {[shape.width]} to divide"
                )


@torch.no_grad()
def divided(model: Any, geometry: Geometry, mine: Sequence[Sequence[int]], ranks: Ranks) -> Any:
    """A copy of a model with this rank's part of the weights of attention and MLPs; all others are the model's own.

    Args:
        mine: its key heads, for each layer. ranks: who adds up.
    """
    held = {id(each): each for each in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, held)
    for layer, shape, heads in zip(made.base_model.layers, geometry.layers, mine, strict=True):
        keys = _numbers(heads, shape.width)
        queries = _numbers(heads, shape.width * shape.group)
        attention, mlp = layer.self_attn, layer.mlp
        for child, rows in zip(_INPUTS, (queries, keys, keys), strict=True):
            setattr(attention, child, _rows(getattr(attention, child), rows))
        attention.o_proj = Summed(_columns(attention.o_proj, queries, ranks.first), ranks)
        neurons = torch.arange(mlp.gate_proj.out_features, device="cpu").tensor_split(ranks.size)[ranks.rank]
        for child in ("gate_proj", "up_proj"):
            setattr(mlp, child, _rows(getattr(mlp, child), neurons))
        mlp.down_proj = Summed(_columns(mlp.down_proj, neurons, ranks.first), ranks)
    return made


class Summed(nn.Module):
    """A linear layer of which each rank has some of the inputs: what it gives is added up over the ranks."""

    def __init__(self, linear: nn.Linear, ranks: Ranks) -> None:
        super().__init__()
        self.linear, self.ranks = linear, ranks

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        self.ranks.add(out)
        return out


def _numbers(heads: Sequence[int], width: int) -> Tensor:
    """Which outputs belong to heads of `width` numbers."""
    return (torch.tensor(heads, device="cpu")[:, None] * width + torch.arange(width, device="cpu")).flatten()


def _rows(linear: nn.Linear, rows: Tensor) -> nn.Linear:
    """The layer with some of its outputs."""
    rows = rows.to(linear.weight.device)
    return _linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _columns(linear: nn.Linear, columns: Tensor, biased: bool) -> nn.Linear:
    """The layer with some of its inputs; its bias comes from one rank alone."""
    return _linear(linear.weight[:, columns.to(linear.weight.device)], linear.bias if biased else None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return made.eval()

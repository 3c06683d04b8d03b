"""Fold constant channels into the biases of their readers, so that they can be removed.

y = W x + b with x_c = k for every input:   b += W[:, c] k,   W[:, c] = 0

Exact up to rounding for a linear layer and for a convolution without padding. With zero padding the border sees
fewer taps of the constant, so those readers keep it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor, fx, nn

from .constants import CONVOLUTIONS
from .liveness import Liveness
from .names import state_tensors
from .rules.table import Flow, arguments, op_name


def fold_(model: nn.Module, flow: Flow, liveness: Liveness) -> int:
    """Move every constant that a reader can absorb into that reader's bias; returns how many (reader, position) pairs.

    A layer that runs twice sees two different inputs through one bias, so only weights used once are folded.
    """
    state = state_tensors(model)
    uses = Counter(name for node, name in flow.capture.tensors.items() for _ in node.users)
    folded = 0
    with torch.no_grad():
        for node, (needed, value) in liveness.reads.terms.items():
            weight, bias = _layer(node, flow)
            if weight is None or bias is None or uses[weight] != 1 or uses[bias] != 1:
                continue
            axis = 1 if op_name(node) in CONVOLUTIONS else needed.dim() - 1
            size = state[weight].shape[1]
            others = tuple(i for i in range(needed.dim()) if i != axis)
            constant = value.known.expand(torch.broadcast_shapes(value.known.shape, value.value.shape))
            positions = needed.amax(others).expand(size) & constant.amin(others).expand(size)
            if not bool(positions.any()):
                continue
            amount = value.value.amax(others).expand(size) * positions
            folded += int(positions.sum())
            _absorb(state[weight], state[bias], positions, amount)
    return folded


def _layer(node: fx.Node, flow: Flow) -> tuple[str | None, str | None]:
    """Names of the weight and bias of a reader that can absorb a constant, else None."""
    args, name = arguments(node), op_name(node)
    if name not in ("linear", "conv1d", "conv2d", "conv3d") or args.get("groups", 1) != 1:
        return None, None
    padding = args.get("padding", 0)
    if name != "linear" and (padding == "same" or np.any(padding if padding != "valid" else 0)):
        return None, None
    names = flow.capture.tensors
    return names.get(args["weight"]), names.get(args["bias"]) if args.get("bias") is not None else None


def _absorb(weight: Tensor, bias: Tensor, positions: Tensor, amount: Tensor) -> None:
    per_input = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    # In float64: a single rounding at the end, as small as one can make it.
    bias.copy_((bias.double() + per_input.double() @ amount.to(weight.device).double()).to(bias.dtype))
    weight[:, positions.to(weight.device)] = 0

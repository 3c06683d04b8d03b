"""One training step of a classifier with constant fan-in, in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

GROUPS = (1, 16, 32, 64)
LOSSES = ("bce", "hinge")
OPTIMIZERS = ("sgd", "momentum", "adam")


def fan_in_step(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, states: list[Tensor], positives: Tensor,
    group: int, loss: str, optimizer: str, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float,
    scale: float, step: int, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `gossamer.kernels.reference.fan_in_step`. x is read in either order."""
    operand = _call.matrix(x, "x", dtypes=(torch.float32,))
    _call.tensor(positives, "positives", ndim=1, dtypes=(torch.int64,))
    (batch, cols), labels = x.shape, values.shape[0]
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {group}")
    classifier = _call.classifier(values, indices, bias, group, batch, cols)
    kept = _states(states, values, bias, OPTIMIZERS.index(optimizer))
    parameters = (values.data_ptr(), indices.data_ptr(), 0 if bias is None else bias.data_ptr(), *kept)
    threads = torch.get_num_threads()
    grad_x, total = (
        torch.empty(batch, cols, dtype=torch.float32, device="cpu"),
        torch.empty((), dtype=torch.float64, device="cpu"),
    )
    room = _call.native.fan_in_step_workspace(classifier, threads)
    workspace = torch.empty(room, dtype=torch.uint8, device="cpu")
    adam = optimizer == "adam"
    if not _call.native.fan_in_step(
        operand, classifier, parameters, positives.data_ptr(), positives.numel(), LOSSES.index(loss),
        OPTIMIZERS.index(optimizer), scale, lr / (1 - beta1**step) if adam else lr,
        lr * weight_decay if adam else weight_decay, beta1, 1 - beta1, beta2, 1 - beta2,
        1 / math.sqrt(1 - beta2**step) if adam else 1.0, eps, seed, step, grad_x.data_ptr(), total.data_ptr(),
        workspace.data_ptr(), threads,
    ):  # fmt: skip
        _call.check_bounds("indices", "column", indices.reshape(-1), 0, cols)
        _call.check_bounds("positives", "label * batch + row", positives, 0, labels * batch)
        if bool((positives[1:] <= positives[:-1]).any()):
            raise ValueError("positives must ascend, none twice")
        _call.refuse_changed("indices and positives")
    return grad_x, total


def _states(states: list[Tensor], values: Tensor, bias: Tensor | None, each: int) -> tuple[int, int, int, int]:
    """Addresses of the first and second state of values, then of the bias; 0 where there is none."""
    like = [("values", values)] * each + ([] if bias is None else [("bias", bias)] * each)
    if len(states) != len(like):
        raise ValueError(f"states must be {len(like)} tensors, got {len(states)}")
    for at, (state, (name, parameter)) in enumerate(zip(states, like, strict=True)):
        _call.tensor(state, f"states[{at}]", dtypes=(torch.float32,))
        if state.shape != parameter.shape:
            raise ValueError(
                f"states[{at}] must have the shape {tuple(parameter.shape)} of {name}, got {tuple(state.shape)}"
            )
    of_values, of_bias = (
        [state.data_ptr() for state in some] + [0] * (2 - len(some)) for some in (states[:each], states[each:])
    )
    return of_values[0], of_values[1], of_bias[0], of_bias[1]

"""fan_in_step: forward, loss, backward and optimizer step of a classifier with constant fan-in, label by label.

    z[b, l] = bias[l] + sum over j of values[l, j] * x[b, indices[l, j]]

The logits of a label are made, turned into the gradient of the loss, and used up before the next label's: neither
logits nor gradients of the weights are ever in memory. What comes back is the gradient by x.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gossamer.ops.checks import INT64, check_integer, check_number, described
from gossamer.ops.fan_in.arguments import INDICES, VALUES, check_tensor, pair_of
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.ops.transforms import check_transforms

Loss = Literal["bce", "hinge"]
Rule = Literal["sgd", "momentum", "adam"]
GROUPS = (1, 16, 32, 64)
STATES: dict[Rule, int] = {"sgd": 0, "momentum": 1, "adam": 2}
"""Numbers that an optimizer keeps for each weight."""
BELOW_ONE = math.nextafter(1, 0)


def _fake(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((), dtype=torch.float64)


fan_in_step_on = register(
    "fan_in_step",
    "(Tensor x, Tensor(a!) values, Tensor indices, Tensor(b!)? bias, Tensor(c!)[] states, Tensor positives, int group, "
    "str loss, str optimizer, float lr, float weight_decay, float beta1, float beta2, float eps, float scale, "
    "int step, int seed) -> (Tensor, Tensor)",
    _fake,
)


def fan_in_step(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    states: list[Tensor],
    positives: Tensor,
    *,
    lr: float,
    step: int,
    loss: Loss = "bce",
    optimizer: Rule = "sgd",
    group: int = 1,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    scale: float = 1.0,
    seed: int = 0,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of training: `values`, `bias` and `states` are written, the gradient by x and the loss returned.

    The loss is a sum over all labels and rows: "bce" of sigmoid(z) against 0 or 1, or "hinge", the squared
    max(0, 1 - y z)**2 with y = +-1. A label none of whose rows is within the margin has gradient zero, exactly: its
    backward pass is skipped, and with "sgd" without decay its update, which would change nothing.

    The rules are those of torch.optim: SGD, SGD with momentum betas[0], AdamW. Weight decay is not for the bias. values
    in bfloat16 are rounded up or down at random, right on average, by a function of (seed, step, label, slot). The same
    bits come out for any number of threads.

    Args:
        x: float32[batch, cols].
        values: float32 or bfloat16 [labels, k].
        indices: uint16 or int32 [ceil(labels / group), k], below cols: the labels of a group share a row.
        bias: float32[labels] or None.
        states: float32, like values then like bias: none for "sgd", one for "momentum", two for "adam".
        positives: int64[n] ascending, none twice: label * batch + row for every label that a row has.
        lr: learning rate; like weight_decay and eps finite in float32 and at least 0.
        step: number of this step, from 1: of Adam's bias correction and of the random bits.
        group: labels that share a row of indices: 1, 16, 32 or 64.
        betas: both at least 0 and below 1.
        scale: factor of the loss, and so of all gradients.
        backend: None for the kernels of x's device; "cpu", "triton" or "reference" to insist.

    Returns:
        (grad_x float32[batch, cols] by the values from before the step, loss float64 []).

    Raises:
        TypeError, ValueError: naming the argument; nothing is written then.

    Source: SPARTEX (arXiv 2411.03171), with the label blocks of ELMO (arXiv 2510.11168) down to one label.

    >>> values, indices = torch.zeros(3, 2), torch.tensor([[0, 1], [1, 2], [0, 2]], dtype=torch.uint16)
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> grad_x, loss = fan_in_step(x, values, indices, None, [], torch.tensor([1]), lr=1.0, step=1, loss="hinge")
    >>> values.tolist(), float(loss)
    ([[-2.0, -4.0], [4.0, 6.0], [-2.0, -6.0]], 3.0)
    """
    check_transforms("gossamer.ops.fan_in_step", x, values, bias)
    check_classifier(x, values, indices, bias, group)
    for name, choice, choices in (("loss", loss, get_args(Loss)), ("optimizer", optimizer, get_args(Rule))):
        if choice not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {choice!r}")
    _check_states(states, values, bias, optimizer)
    check_tensor("positives", positives, (torch.int64,), 1)
    check_integer("step", step, 1, INT64[1])
    check_integer("seed", seed, *INT64)
    # One number that is none, or none of float32, would be in every weight.
    lr, weight_decay, eps = (
        check_number("lr", lr, 0),
        check_number("weight_decay", weight_decay, 0),
        check_number("eps", eps, 0),
    )
    scale = check_number("scale", scale)
    first, second = pair_of("betas", betas, "float, float")
    first, second = check_number("betas[0]", first, 0, BELOW_ONE), check_number("betas[1]", second, 0, BELOW_ONE)
    check_backend(backend, "x", x)
    grad_x, total = fan_in_step_on(backend)(
        x, values, indices, bias, states, positives, group, loss, optimizer, lr, weight_decay, first, second, eps,
        scale, step, seed,
    )  # fmt: skip
    return grad_x, total


def check_classifier(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, group: int) -> None:
    """Refuse shapes and dtypes that are none of a classifier with constant fan-in, and x that is no batch for it."""
    check_integer("group", group, 1)
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {group!r}")
    check_tensor("x", x, (torch.float32,), 2)
    check_tensor("values", values, VALUES, 2)
    check_tensor("indices", indices, INDICES, 2)
    labels, k = values.shape
    if tuple(indices.shape) != (-(-labels // group), k):
        raise ValueError(
            f"indices must have the shape {(-(-labels // group), k)} for {labels} labels in groups of {group}, "
            f"got {tuple(indices.shape)}"
        )
    if bias is not None:
        check_tensor("bias", bias, (torch.float32,), 1)
        if bias.numel() != labels:
            raise ValueError(f"bias must be float32[{labels}] or None, got {described(bias)}")


def _check_states(states: list[Tensor], values: Tensor, bias: Tensor | None, optimizer: Rule) -> None:
    if not isinstance(states, (list, tuple)):
        raise TypeError(f"states must be a list of tensors, got {type(states).__name__}")
    each = STATES[optimizer]
    shapes = [tuple(values.shape)] * each + ([] if bias is None else [tuple(bias.shape)] * each)
    expected, found = [f"{torch.float32}{list(shape)}" for shape in shapes], [described(state) for state in states]
    if found != expected:
        raise ValueError(f"states must be float32 of the shapes {shapes} for {optimizer!r}, got {found}")


def sorted_positives(offsets: Tensor, labels: Tensor, count: int) -> Tensor:
    """label * batch + row of each label of each row, ascending, none twice: what `fan_in_step` takes.

    Args:
        offsets: int64[batch + 1]; labels: integers [n], those of row b at offsets[b] to offsets[b + 1].
        count: labels there are.

    Raises:
        ValueError: a label that is not there.

    >>> sorted_positives(torch.tensor([0, 2, 3]), torch.tensor([4, 0, 4]), 5).tolist()
    [0, 8, 9]
    """
    batch = offsets.numel() - 1
    labels = labels.to(torch.int64)
    outside = ((labels < 0) | (labels >= count)).nonzero()
    if outside.numel():
        at = int(outside[0])
        wrong = int(torch.searchsorted(offsets, at, right=True)) - 1
        raise ValueError(f"labels of row {wrong} must be at least 0 and below {count}, got {int(labels[at])}")
    row = torch.repeat_interleave(torch.arange(batch, device=labels.device), offsets.diff(), output_size=len(labels))
    return torch.unique(labels * batch + row)

"""Softmax over a shortlist of labels for each row: only the labels that some row names are read and changed.

    loss = scale * sum over rows b of -(mean over positives p of b) log softmax(z[b, shortlist and positives of b])[p]

The labels of a batch are gathered, multiplied by the fan-in product and its gradients, and written back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.counter import round_stochastically, row_keys
from gossamer.kernels.reference.fan_in_step import Rule
from gossamer.ops.fan_in.product import fan_in_mm_on, fan_in_mm_t_on, fan_in_sdd_on
from gossamer.ops.registration import Backend


def softmax_step(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, states: list[Tensor], positives: Tensor,
    shortlist: Tensor, group: int, rule: Rule, scale: float, seed: int, backend: Backend | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(grad_x[batch, width], loss); values, bias and states of the labels that are named are written.

    Args:
        positives: int64[n] ascending, label * batch + row, as of `gossamer.ops.fan_in.step.fan_in_step`.
        shortlist: int64[batch, size], labels of each row, in any order; negative ones name nothing.
    """
    batch = len(x)
    row = torch.arange(batch, device=x.device)[:, None].expand_as(shortlist)[shortlist >= 0]
    keys = torch.cat([shortlist[shortlist >= 0] * batch + row, positives])
    names, place = torch.unique(torch.div(keys, batch, rounding_mode="floor"), return_inverse=True)
    w, columns = values[names].float(), indices.to(torch.int32)[torch.div(names, group, rounding_mode="floor")]
    z = fan_in_mm_on(backend)(x, w, columns).t()
    if bias is not None:
        z = z + bias[names, None]
    member = torch.zeros_like(z, dtype=torch.bool)
    member[place, keys % batch] = True
    target = torch.zeros_like(z)
    mine = place[len(keys) - len(positives) :]
    target[mine, positives % batch] = 1
    counts = target.sum(0)
    target /= counts.clamp(min=1)
    log_p = torch.where(member, z, -torch.inf).log_softmax(0)
    total = -torch.where(target > 0, log_p * target, 0).sum(dtype=torch.float64) * scale
    # A row without positives has no loss, and one without labels no softmax.
    g = torch.where(member & (counts > 0), log_p.exp() - target, 0).mul_(scale).t()
    grad_x = fan_in_mm_t_on(backend)(g, w, columns, x.shape[1])
    dw = fan_in_sdd_on(backend)(g, x, columns)
    each = {"sgd": 0, "momentum": 1, "adam": 2}[rule.optimizer]
    some = [state[names] for state in states]
    new = rule.apply(values[names], some[:each], dw, rule.decay)
    values[names] = (
        new if values.dtype == torch.float32 else round_stochastically(new, row_keys(seed, rule.step, names))
    )
    if bias is not None:
        bias[names] = rule.apply(bias[names], some[each:], g.sum(0), 0.0)
    for state, kept in zip(states, some, strict=True):
        state[names] = kept
    return grad_x, total

"""Few rows times the weights of a layer, as in decoding: skipping or dense, as the layer's tuner chooses.

Dense is faster where little is left out, where several rows leave out different places, and where a machine's own
product is fast enough. The choice depends on what earlier calls saw, so in a graph it lies inside opaque ops, which
carry the tuner's handle. Eager calls run the same functions directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor

from gossamer.handles import owner_of
from gossamer.measure import clock
from gossamer.ops import dense, half
from gossamer.ops.gemv import gated_on, shrink, skip_on, within
from gossamer.ops.registration import register_opaque
from gossamer.planner import Tuner
from gossamer.planner.tuner.trial import DENSE

LEAST = 1 << 18
"""Elements of a weight below which nobody is asked, and what is left out is skipped: some 50 us of one core."""

_QUESTION, _SKIP, _INPUTS = "decode", "skip", "inputs"
_BREAK_EVEN = 0.9
_CALL = 2e-6  # seconds of Python around a call that asks

Result = tuple[Tensor, Tensor]  # y, and int64[1]: how many inputs were kept


def decoding_tuner() -> Tuner:
    """One for each layer: skip, whose work grows with the share of inputs that are kept, or dense."""
    return Tuner({_QUESTION: {_SKIP: _INPUTS}}, _prior, trusted=False, name=_QUESTION, call=_CALL)


def _prior(question: str, alternative: str, densities: Mapping[str, float]) -> float:
    return 1.0 if alternative == DENSE else densities[_INPUTS] / _BREAK_EVEN


def decode(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, tuner: Tuner, gate: Tensor | None = None,
    up: Tensor | None = None, up_bias: Tensor | None = None,
) -> Result:  # fmt: skip
    """weight (h where |h| > threshold) + bias, h = gate * (up x + up_bias) or x, and how many elements of h those are.

    No gradient and no checks: for layers. The tuner is not asked on an accelerator, where times would
    take a sync, nor where torch's dense product would read the weight element by element.

    Args:
        x: [B, in]. weight: [out, hidden], whose columns are skipped where weight.t() is contiguous. gate: [B, hidden].
        up: [hidden, in], whose rows are skipped behind a closed gate.
        threshold: float64[]. tuner: a `decoding_tuner()`.
    """
    if not x.is_cpu or weight.numel() < LEAST or half.goes_by_elements(weight):
        return _skip(x, weight, bias, threshold, gate, up, up_bias)
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or isinstance(x, FakeTensor):
        y, kept = _opaque(x, weight, bias, threshold, tuner.handle, gate, up, up_bias)
        return y, kept
    return _decode(x, weight, bias, threshold, tuner, gate, up, up_bias)


def _decode(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, tuner: Tuner | Tensor, gate: Tensor | None,
    up: Tensor | None, up_bias: Tensor | None,
) -> Result:  # fmt: skip
    tuner = tuner if isinstance(tuner, Tuner) else owner_of(tuner, Tuner, "tuner")
    shape = x.shape, x.dtype
    choice = tuner.bypassed(shape)
    if choice is not None:
        return _RUN[choice](x, weight, bias, threshold, gate, up, up_bias)
    inputs, known = x if gate is None else gate, None
    if torch.are_deterministic_algorithms_enabled():
        dropped = within(inputs, threshold) | (inputs == 0)
        known = {_INPUTS: 1.0 - int(dropped.sum()) / max(inputs.numel(), 1)}
    choice = tuner.choose(_QUESTION, (DENSE, _SKIP), shape, known)
    begin = clock.now()
    y, kept = _RUN[choice](x, weight, bias, threshold, gate, up, up_bias)
    seconds = clock.now() - begin
    tuner.observe(_QUESTION, choice, seconds, {_INPUTS: int(kept) / max(inputs.numel(), 1)})
    return y, kept


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, gate: Tensor | None, up: Tensor | None,
    up_bias: Tensor | None,
) -> Result:  # fmt: skip
    h = x if gate is None or up is None else gate * dense.linear(x, up, up_bias)
    h = shrink(h, float(threshold))
    return dense.linear(h, weight, bias), torch.count_nonzero(h).reshape(1)


def _skip(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, gate: Tensor | None, up: Tensor | None,
    up_bias: Tensor | None,
) -> Result:  # fmt: skip
    h = x if gate is None or up is None else gated_on(None)(x, up, up_bias, gate)
    if not weight.t().is_contiguous():
        return F.linear(h, weight, bias), torch.count_nonzero(h).reshape(1)
    y, kept = skip_on(None)(h, weight.t(), bias, threshold)
    return y, kept


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Result:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(1, dtype=torch.int64)


_RUN = {DENSE: _dense, _SKIP: _skip}
_opaque = register_opaque(
    "decode",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor threshold, Tensor tuner, Tensor? gate, Tensor? up, "
    "Tensor? up_bias) -> (Tensor, Tensor)",
    _decode,
    _fake,
)

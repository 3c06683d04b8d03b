"""What a module with a threshold on an activation has: the number, for compiled graphs too, and how much stayed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.handles import graph_input
from gossamer.nn.traced import leaves_process
from gossamer.ops.decoding import decoding_tuner
from gossamer.ops.gemv import shrink, within
from gossamer.planner import Tuner


class Thresholded(nn.Module):
    """A module that drops elements of one activation at or below a threshold.

    Attributes:
        threshold: at least 0. A plain number, not part of the state_dict; may be assigned at any time. A model of
            transformers saves it in its config.
        tuner: whether few rows skip or take the dense products. Neither is it.
    """

    tuner: Tuner

    _threshold: float
    _level: Tensor  # the same, as an input of compiled graphs: layers of one class share them
    _kept: Tensor
    _seen: int
    saved_as: dict[str, Any] | None = None
    """What the config of a model says of this module; it keeps up with the threshold."""

    @property
    def threshold(self) -> float:
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        check_threshold("threshold", value)
        self._threshold, self._level = float(value), graph_input(float(value))
        if self.saved_as is not None:
            self.saved_as["threshold"] = float(value)

    def shrunk(self, x: Tensor) -> Tensor:
        """x where |x| > threshold, else 0; see `shrink`."""
        if isinstance(x, Tensor) and torch.compiler.is_compiling() and not leaves_process():
            return x.masked_fill(within(x, self._level), 0)
        return shrink(x, self._threshold)

    def start_counting(self, device: torch.device) -> None:
        """Count from here: `_kept` of `_seen` elements. Neither is part of the state_dict."""
        self._seen, self.tuner = 0, decoding_tuner()
        with torch.inference_mode(False):
            zero = torch.zeros(1, dtype=torch.int64, device=device)
        self.register_buffer("_kept", zero, persistent=False)

    def count(self, kept: Tensor, seen: int) -> None:
        """Outside compiled graphs. A new tensor each time: one of inference mode could not be written to after it."""
        if not torch.compiler.is_compiling():
            self._kept = self._kept + kept
            self._seen += seen

    def density(self) -> float:
        """The share of elements that stayed, over calls with few rows outside torch.compile; NaN before any."""
        return int(self._kept) / self._seen if self._seen else math.nan


def check_threshold(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")

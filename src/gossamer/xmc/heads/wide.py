"""WideHead: a wide ReLU layer between the encoder and a head, whose labels then read some of its outputs.

A label with few inputs underfits where the encoder's vector is narrow: what it reads was made for all labels. Tens of
thousands of features in between, which all labels share, give it more to choose from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from gossamer.measure.memory import require_memory
from gossamer.ops.fan_in.connections import draw_values
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.heads import saved
from gossamer.xmc.heads.base_head import Head, checked_x
from gossamer.xmc.heads.growth import Growth
from gossamer.xmc.heads.store import Stored, StoreError

BYTES = 12  # of a weight: its value and the two states of Adam
_ROWS = 4096  # of the layer whose gradient is held at a time
_BETAS, _EPS = (0.9, 0.999), 1e-8


class WideHead(Head):
    """head(relu(x W^T + b)), with W dense [head.width, width] in float32, trained by Adam inside `step`.

    Args:
        width: features of the input.
        head: reads head.width features.
        relative_lr: the layer's learning rate as a multiple of the head's.
        seed: of the first weights.

    Attributes:
        head: the head behind. weight, bias: of the layer. first, second, bias_first, bias_second: states of Adam.

    Memory: that of the head, 12 * width * head.width bytes for the layer, and 4 * width * 4096 while it steps.

    Raises:
        ValueError: naming the argument. MemoryError: the layer is larger than what is free; says what fits.

    Source: the intermediate layer of Schultheis and Babbar, "Towards memory-efficient training for extremely large
    output spaces", ECML 2023 (arXiv 2306.03725).

    >>> from gossamer.xmc import FusedHead
    >>> head = WideHead(8, FusedHead(64, 100, fan_in=4))
    >>> grad_x, loss = head.step(torch.randn(2, 8), [[3, 99], []], lr=0.1)
    >>> grad_x.shape, head.topk(torch.randn(2, 8), k=3)[1].shape
    (torch.Size([2, 8]), torch.Size([2, 3]))
    """

    kind = "wide"
    TENSORS = ("weight", "bias", "first", "second", "bias_first", "bias_second", "steps")
    weight: Tensor
    bias: Tensor
    first: Tensor
    second: Tensor
    bias_first: Tensor
    bias_second: Tensor

    @torch.inference_mode(False)
    def __init__(
        self,
        width: int,
        head: Head,
        *,
        relative_lr: float = 0.2,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be an integer of at least 1, got {width!r}")
        if not 0 <= relative_lr < float("inf"):
            raise ValueError(f"relative_lr must be at least 0 and finite, got {relative_lr}")
        self.width, self.labels, self.ranks = width, head.labels, head.ranks
        self.relative_lr, self.head = relative_lr, head
        shape = head.width, width
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type != "meta":
            each = BYTES * (width + 1)
            require_memory(f"intermediate={head.width:,}", head.width, each, "Take a smaller intermediate layer")
        for name in ("weight", "first", "second"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32, device=device))
        for name in ("bias", "bias_first", "bias_second"):
            self.register_buffer(name, torch.zeros(head.width, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        if not self.weight.is_meta:
            draw_values(self.weight, seed=seed, bound=(6 / width) ** 0.5)  # of He et al. (arXiv 1502.01852), for ReLUs

    def extra_repr(self) -> str:
        return f"{self.width}, {self.head.width}, relative_lr={self.relative_lr}"

    def features(self, x: Tensor) -> Tensor:
        """float32[batch, head.width]: what the head reads of x[batch, width]."""
        return torch.addmm(self.bias, checked_x(x, self.width), self.weight.t()).relu_()

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        labels: Csr | Sequence[Sequence[int]],
        lr: float,
        *,
        features: Csr | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, float]:
        """As `FusedHead.step`: the head's, and then that of the layer, which reads no features beside x."""
        _refuse(features)
        x = checked_x(x, self.width)
        h = self.features(x)
        grad, loss = self.head.step(h, labels, lr, scale=scale)
        grad = grad * (h > 0)
        grad_x = grad @ self.weight  # before the weights change
        for begin in range(0, len(self.weight), _ROWS):
            rows = slice(begin, begin + _ROWS)
            self._adam(rows, grad[:, rows].t() @ x, grad[:, rows].sum(0), lr * self.relative_lr)
        self.steps += 1
        return grad_x, loss

    def _adam(self, rows: slice, weight: Tensor, bias: Tensor, lr: float) -> None:
        """Adam's step on some rows, as torch.optim.Adam takes it."""
        done = [self.steps.to(torch.float32) for _ in range(2)]  # counted up inside
        adam(
            [self.weight[rows], self.bias[rows]], [weight, bias], [self.first[rows], self.bias_first[rows]],
            [self.second[rows], self.bias_second[rows]], [], done,
            foreach=False, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=lr, weight_decay=0.0, eps=_EPS,
            maximize=False,
        )  # fmt: skip

    @torch.no_grad()
    def topk(
        self,
        x: Tensor,
        k: int = 5,
        *,
        features: Csr | None = None,
        exclude: Csr | None = None,
        never: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `FusedHead.topk`."""
        _refuse(features)
        return self.head.topk(self.features(x), k, exclude=exclude, never=never)

    def rewire(self, *args: Any, growth: Growth | None = None, **how: Any) -> int:
        """As `FusedHead.rewire`, of the head; the layer is dense."""
        if growth is not None:
            _refuse(growth.features)
            growth = replace(growth, x=self.features(checked_x(growth.x, self.width)))
        return self.head.rewire(*args, growth=growth, **how)

    def set_bias(self, bias: Tensor) -> None:
        """Take float32[labels] as the bias of the labels."""
        self.head.set_bias(bias)

    @torch.inference_mode(False)
    def subset(self, labels: Tensor) -> WideHead:
        """As `FusedHead.subset`; the layer is the same tensors."""
        return self._with({name: getattr(self, name) for name in self.TENSORS}, self.head.subset(labels))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write everything that training goes on from, whole or not at all; `open_head` reads it."""
        tensors = {name: getattr(self, name) for name in self.TENSORS}
        settings = {"width": self.width, "relative_lr": self.relative_lr}
        return saved.save_composite(self, directory, settings, tensors, [self.head])

    @classmethod
    def made(cls, stored: Stored, parts: list[Head], where: str | os.PathLike[str]) -> WideHead:
        """The head of what `save` wrote and of the head behind."""
        try:
            (head,) = parts
            with torch.device("meta"):
                plain = cls(stored.settings["width"], head, relative_lr=stored.settings["relative_lr"])
            return plain._with(stored.tensors, head)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where} holds no head of this version: {error}") from error

    def _with(self, tensors: dict[str, Tensor], head: Head) -> WideHead:
        """A head of this layer's settings with these tensors, no copies of them.

        Raises:
            ValueError: other tensors than a layer has.
        """
        with torch.device("meta"):
            other = WideHead(self.width, head, relative_lr=self.relative_lr)
        for name in self.TENSORS:
            found, wanted = tensors[name], getattr(other, name)
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, expected {list(wanted.shape)}")
            setattr(other, name, found)
        return other


def _refuse(features: Csr | None) -> None:
    if features is not None:
        raise ValueError(f"features must be None where a wide layer reads x, got {features}")

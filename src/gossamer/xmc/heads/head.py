"""FusedHead: a classifier over up to hundreds of millions of labels, trained without logits or gradients in memory.

A label reads `fan_in` of the inputs. One call of `step` is forward, loss, backward and the optimizer's step, label by
label, and returns the gradient by the input for the encoder's backward pass. (Of language models this is known as cut
cross entropy.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gossamer.kernels.reference.fan_in_step import Rule as RuleOf
from gossamer.ops.fan_in.connections import draw_values
from gossamer.ops.fan_in.rewire import Scope, fan_in_candidates, fan_in_indices, fan_in_rewire
from gossamer.ops.fan_in.step import GROUPS, STATES, Rule, fan_in_step, sorted_positives
from gossamer.ops.fan_in.topk import fan_in_topk
from gossamer.ops.registration import Backend, check_backend
from gossamer.pattern.build import index_dtype
from gossamer.xmc.data.csr import Csr
from gossamer.xmc.heads import saved
from gossamer.xmc.heads.base_head import Head, checked_sets, checked_x
from gossamer.xmc.heads.features import beside
from gossamer.xmc.heads.growth import Growth, candidate_scores
from gossamer.xmc.heads.memory import Layout, require_room
from gossamer.xmc.heads.shortlist import softmax_step

Loss = Literal["bce", "hinge", "softmax"]


_EXACT = ("bias", "first", "second", "bias_first", "bias_second")
"""Buffers that are float32 whatever the values are."""


class FusedHead(Head):
    """z = x S^T + bias over `labels` labels, S having `fan_in` values in each row; trained by `step`.

    Args:
        width: features of the input.
        labels: number of labels.
        fan_in: inputs of a label, at most `width`.
        dtype: of the values: torch.float32, or torch.bfloat16 with stochastic rounding.
        optimizer: "sgd", "momentum" or "adam" (AdamW if it decays); states are float32.
        loss: "bce", or "hinge", the squared hinge, whose labels outside the margin cost a forward pass only: sums over
            labels and rows. Or "softmax" over a shortlist for each row, a sum over rows; labels that no row names are
            not read, and their states stay as they are.
        group: labels that share their inputs: 1, 16, 32 or 64; consecutive ones.
        bias: whether labels have a bias (float32, zero at first, without decay).
        seed: of the first inputs and values, and of stochastic rounding.
        betas, eps, weight_decay: of the optimizer; betas[0] is the momentum.
        first_label: the number of the first of these labels where they are a share of more, a multiple of group: what
            is drawn at random is then what the whole would have.
        device: where the head lies; torch's default one when not given.

    Under `torch.device("meta")` nothing is allocated and nothing drawn.

    Attributes (buffers; nothing here is a Parameter, for `step` is the optimizer):
        values: [labels, fan_in]. indices: uint16 or int32 [ceil(labels / group), fan_in], rows sorted, none twice.
        bias: float32[labels] or None.
        first, second, bias_first, bias_second: states of the optimizer, or None.
        ages: uint8, like indices, how many rewirings each connection has stayed; None until `rewire` protects some.
        steps: int64 [], steps taken.

    Memory: labels * fan_in * (bytes of a value + bytes of an index / group + 4 for each state) + 4 * labels for the
    bias and each of its states; and while it steps 4 * width * batch for each thread and two more, and a copy of the
    indices where features come beside x. No other number grows with labels or batch.

    Raises:
        TypeError, ValueError: naming the argument. MemoryError: more than is free; says how many labels fit.

    Source: Ullah et al., "Navigating extremes: dynamic sparsity in large output spaces", 2024 (arXiv 2411.03171).

    >>> head = FusedHead(8, 100, fan_in=4)
    >>> grad_x, loss = head.step(torch.randn(2, 8), [[3, 99], []], lr=0.1)
    >>> grad_x.shape, head.values.shape
    (torch.Size([2, 8]), torch.Size([100, 4]))
    """

    values: Tensor
    indices: Tensor
    bias: Tensor | None
    first: Tensor | None
    second: Tensor | None
    bias_first: Tensor | None
    bias_second: Tensor | None
    ages: Tensor | None
    steps: Tensor

    @torch.inference_mode(False)
    def __init__(
        self,
        width: int,
        labels: int,
        *,
        fan_in: int = 64,
        dtype: torch.dtype = torch.float32,
        optimizer: Rule = "sgd",
        loss: Loss = "bce",
        group: int = 1,
        bias: bool = True,
        seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        first_label: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _check(width, labels, fan_in, dtype, optimizer, loss, group)
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type != "meta":
            layout = Layout(fan_in, index_dtype(width).itemsize, dtype.itemsize, STATES[optimizer], group, bias)
            require_room(layout, labels)
        self.first_label = first_label
        self.width, self.labels, self.fan_in, self.group, self.seed = width, labels, fan_in, group, seed
        self.optimizer: Rule = optimizer
        self.loss: Loss = loss
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.register_buffer("values", torch.empty(labels, fan_in, dtype=dtype, device=device))
        rows = -(-labels // group)
        self.register_buffer("indices", torch.empty(rows, fan_in, dtype=index_dtype(width), device=device))
        self.register_buffer("bias", torch.zeros(labels, dtype=torch.float32, device=device) if bias else None)
        for at, name in enumerate(("first", "second")):
            kept = at < STATES[optimizer]
            self.register_buffer(
                name, torch.zeros(labels, fan_in, dtype=torch.float32, device=device) if kept else None
            )
            self.register_buffer(
                f"bias_{name}", torch.zeros(labels, dtype=torch.float32, device=device) if kept and bias else None
            )
        self.register_buffer("ages", None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        if device.type != "meta":
            fan_in_indices(labels, width, fan_in, seed=seed, group=group, first=first_label, out=self.indices)
            draw_values(self.values, seed=seed, first=first_label)

    def extra_repr(self) -> str:
        return (
            f"{self.width}, {self.labels}, fan_in={self.fan_in}, dtype={self.values.dtype}, "
            f"optimizer={self.optimizer!r}, loss={self.loss!r}, group={self.group}, bias={self.bias is not None}"
        )

    @property
    def states(self) -> list[Tensor]:
        """The optimizer's tensors that are there: those of the values, then those of the bias."""
        each = (self.first, self.second, self.bias_first, self.bias_second)
        return [state for state in each if state is not None]

    @torch.no_grad()
    def step(
        self,
        x: Tensor,
        labels: Csr | Sequence[Sequence[int]],
        lr: float,
        *,
        features: Csr | None = None,
        shortlist: Tensor | None = None,
        scale: float = 1.0,
        backend: Backend | None = None,
    ) -> tuple[Tensor, float]:
        """One step of training on a batch: returns (gradient of the loss by x, loss).

        Args:
            x: [batch, width], any float dtype; computed in float32. Not differentiated: pass `out.detach()` and go on
                with `out.backward(grad_x)`.
            labels: of each row of x, a `gossamer.xmc.data.Csr` of shape (batch, labels) or a list of numbers for each;
                what is named twice counts once.
            lr: learning rate of this step.
            features: Csr [batch, f] with values: x has the first width - f inputs only, the others are these. They get
                no gradient, and those that no row of the batch has are skipped, which takes memory for a copy of
                `indices` while it steps.
            shortlist: with loss="softmax", int64[batch, size]: the labels of each row that its positives compete with;
                negative numbers fill up shorter lists.
            scale: factor of the loss and all gradients: 1 / batch for a mean over rows.
            backend: None for the kernels of x's device; or "cpu", "triton", "reference" to insist.

        Returns:
            (grad_x float32 like x, loss), both of the values before the step. The gradient of the weights is
            used up: clipping and accumulating gradients need `gossamer.nn.FanInLinear`.

        Raises:
            TypeError, ValueError: naming the argument; nothing has changed then.
        """
        x = checked_x(x, self.width, features)
        check_backend(backend, "x", x)
        x, indices, width = *beside(x, features, self.indices), x.shape[1]
        step, positives = int(self.steps) + 1, self._positives(labels, len(x))
        if self.loss == "softmax" or shortlist is not None:
            self._check_shortlist(shortlist, len(x))
            assert shortlist is not None
            rule = RuleOf(self.optimizer, float(lr), self.weight_decay, *self.betas, self.eps, step)
            grad_x, loss = softmax_step(
                x, self.values, indices, self.bias, self.states, positives, shortlist.long(), self.group, rule,
                scale, self.seed, backend,
            )  # fmt: skip
            self.steps += 1
            return grad_x[:, :width].contiguous(), float(loss)
        grad_x, loss = fan_in_step(
            x, self.values, indices, self.bias, self.states, positives,
            lr=lr, step=step, loss=self.loss, optimizer=self.optimizer, group=self.group, betas=self.betas,
            eps=self.eps, weight_decay=self.weight_decay, scale=scale, seed=self.seed, backend=backend,
        )  # fmt: skip
        self.steps += 1
        return grad_x[:, :width].contiguous(), float(loss)

    def topk(
        self,
        x: Tensor,
        k: int = 5,
        *,
        features: Csr | None = None,
        exclude: Csr | None = None,
        never: Tensor | None = None,
        backend: Backend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k labels of highest logit for each row of x: see `gossamer.ops.fan_in_topk`.

        Args:
            x: [batch, width], any float dtype; computed in float32.
            features: as in `step`.
            exclude: Csr of shape (batch, labels): what a row must not get.
            never: int64[n], ascending: what no row gets.

        Returns:
            (scores float32[batch, k], ids int64[batch, k]), best first, equal scores in order of label; -inf and -1
            where too few are left. Whatever is excluded, k are found if there are k others.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        x, indices = beside(checked_x(x, self.width, features), features, self.indices)
        lists = None
        if exclude is not None:
            checked_sets("exclude", exclude, len(x), self.labels)
            device = self.values.device
            lists = exclude.offsets.to(device), exclude.indices.to(device, torch.int64)
        return fan_in_topk(
            x, self.values, indices, k, bias=self.bias, group=self.group, exclude=lists,
            never=never, backend=backend,
        )  # fmt: skip

    @torch.no_grad()
    def rewire(
        self,
        fraction: float | None = None,
        threshold: float | None = None,
        scope: Scope = "row",
        *,
        avoid_dropped: bool = True,
        protect: int = 0,
        growth: Growth | None = None,
        backend: Backend | None = None,
    ) -> int:
        """Replace the weakest connections by new ones, of value and state 0: see `gossamer.ops.fan_in_rewire`.

        Args:
            growth: examples: of as many inputs as it says, drawn from those that a row does not read, the ones with
                the largest |gradient| come, of labels that share inputs the largest sum. No more connections of a row
                go than there are such inputs. None: what comes is drawn.
            protect: connections that have not stayed for so many rewirings are left alone. The first call with a number
                above 0 allocates `ages`, a byte for each connection, and takes all there are for old.

        Returns:
            How many connections (of rows of `indices`) were replaced.

        Raises:
            TypeError, ValueError: naming the argument; nothing has changed then.

        Source: with `growth` RigL (Evci et al., 2020, arXiv 1911.11134, section 3) over sampled inputs, so that no
        dense gradient is needed.

        >>> head, x = FusedHead(16, 50, fan_in=4), torch.randn(8, 16)
        >>> head.rewire(0.25, growth=Growth(x, [[label] for label in range(8)], candidates=6))
        50
        """
        chosen = None if growth is None else self._candidates(growth, backend)
        if protect and self.ages is None:
            self.ages = torch.full(self.indices.shape, 255, dtype=torch.uint8, device=self.indices.device)
        states = [state for state in (self.first, self.second) if state is not None]
        return int(
            fan_in_rewire(
                self.values, self.indices, self.width, fraction=fraction, threshold=threshold, scope=scope,
                states=states, ages=self.ages, min_age=protect, candidates=chosen, avoid_dropped=avoid_dropped,
                group=self.group, seed=self.seed, step=int(self.steps), first=self.first_label, backend=backend,
            )
        )  # fmt: skip

    def _candidates(self, growth: Growth, backend: Backend | None) -> tuple[Tensor, Tensor]:
        """Inputs that each row of indices might read, and how much each of them would help."""
        if self.loss == "softmax":
            raise ValueError("growth is for loss='bce' or 'hinge': labels that no shortlist names have no gradient")
        positives = self._positives(growth.labels, len(growth.x))
        n = min(growth.candidates, self.width - self.fan_in)
        first = self.first_label // self.group
        drawn = fan_in_candidates(
            self.indices, self.width, n, seed=self.seed, step=int(self.steps), first=first, backend=backend
        )
        x = checked_x(growth.x, self.width, growth.features)
        x, indices = beside(x, growth.features, torch.cat([self.indices, drawn], 1))
        scores = candidate_scores(
            x, self.values, indices, self.bias, positives, loss=self.loss, group=self.group, backend=backend
        )
        return drawn, scores

    def set_bias(self, bias: Tensor) -> None:
        """Take float32[labels] as the bias; without effect where labels have none."""
        if self.bias is not None:
            self.bias.copy_(bias)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write everything that training goes on from, whole or not at all: see `gossamer.xmc.heads.store`."""
        return saved.save(self, directory)

    def _apply(self, *args: Any, **options: Any) -> FusedHead:
        exact = {name: getattr(self, name) for name in _EXACT}
        super()._apply(*args, **options)
        for name, before in exact.items():  # `bfloat16()` and the like are for the values alone
            after = getattr(self, name)
            if before is not None and after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    def __getstate__(self) -> dict[str, Any]:
        """With indices of 16 bits as int16, for torch reads back no pickled uint16."""
        indices = self.indices.view(torch.int16) if self.indices.dtype == torch.uint16 else self.indices
        return {**self.__dict__, "_buffers": {**self._buffers, "indices": indices}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.indices = self.indices.view(index_dtype(self.width))

    @classmethod
    @torch.inference_mode(False)
    def open(cls, directory: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False) -> FusedHead:
        """What `save` wrote, also in shares; training goes on with the same bits.

        Args:
            mmap: leave the numbers where they lie until they are read: milliseconds, whatever the size. What is
                written, by `step` for example, stays in this process, and is in memory then.
            verify: compare every byte with its checksum first.

        Raises:
            StoreError: nothing there, or damaged, edited, newer, or no head.
        """
        return saved.load(cls, directory, mmap=mmap, verify=verify)

    @torch.inference_mode(False)
    def subset(self, labels: Tensor) -> FusedHead:
        """A head with copies of these labels only, numbered in the order given (int64[n]); their inputs are not shared.

        Raises:
            TypeError, ValueError: a label that is not there; no labels.
        """
        return saved.subset(self, labels)

    def to_csr(self) -> Csr:
        """The weights as a sparse matrix of shape (labels, width), float32 values: what other tools take."""
        rows = self.indices.to(torch.int32).repeat_interleave(self.group, 0)[: self.labels]
        offsets = torch.arange(self.labels + 1, device=rows.device) * self.fan_in
        return Csr(offsets, rows.reshape(-1), self.values.float().reshape(-1), (self.labels, self.width))

    def _check_shortlist(self, shortlist: Tensor | None, batch: int) -> None:
        if self.loss != "softmax":
            raise ValueError(f"shortlist is for loss='softmax', got it with loss={self.loss!r}")
        if not isinstance(shortlist, Tensor) or shortlist.dtype not in (torch.int32, torch.int64):
            found = shortlist.dtype if isinstance(shortlist, Tensor) else type(shortlist).__name__
            raise TypeError(f"shortlist must be an int64 tensor for loss='softmax', got {found}")
        if shortlist.dim() != 2 or len(shortlist) != batch:
            raise ValueError(f"shortlist must have shape [{batch}, size], got {tuple(shortlist.shape)}")
        if shortlist.numel() and int(shortlist.max()) >= self.labels:
            raise ValueError(f"shortlist must name labels below {self.labels}, got {int(shortlist.max())}")

    def _positives(self, labels: Csr | Sequence[Sequence[int]], batch: int) -> Tensor:
        labels = checked_sets("labels", labels, batch, self.labels)
        device = self.values.device
        return sorted_positives(labels.offsets.to(device), labels.indices.to(device), self.labels)


def _check(
    width: int, labels: int, fan_in: int, dtype: torch.dtype, optimizer: Rule, loss: Loss, group: int
) -> None:  # fmt: skip
    for name, size in (("width", width), ("labels", labels), ("fan_in", fan_in)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")
    if fan_in > width:
        raise ValueError(f"fan_in must be at most the width of {width}, got {fan_in}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if optimizer not in STATES:
        raise ValueError(f"optimizer must be one of {', '.join(map(repr, STATES))}, got {optimizer!r}")
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {', '.join(map(repr, get_args(Loss)))}, got {loss!r}")
    if group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(map(str, GROUPS))}, got {group!r}")

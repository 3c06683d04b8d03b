"""Softmax attention in float32, of packed texts or over the keys that a mask lets queries see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """`Texts` in csrc/kernels.h: packed, with offsets; or `count` texts of `rows` queries and `cols` keys each."""

    offsets: Tensor | None
    count: int
    rows: int
    cols: int

    @property
    def numbers(self) -> Numbers:
        return _call.address(self.offsets), self.count, self.rows, self.cols


@dataclass(frozen=True)
class Seen:
    """What queries see: `mask` [texts or 1, heads or 1, rows or 1, columns], bool or float32, read as it lies.

    places: int64[rows of all texts], their rows and columns of the mask.
    """

    mask: Tensor | None = None
    places: Tensor | None = None

    def numbers(self, of: Texts) -> Numbers:
        """`SeenMask` in csrc/kernels.h: packed texts see a part of their own each, of one mask too."""
        if self.mask is None:
            return (0,) * 10
        sizes, steps = self.mask.shape, self.mask.stride()
        texts, heads = (size if step else 1 for size, step in zip(sizes[:2], steps[:2], strict=True))
        texts = texts if of.offsets is None else of.count
        apart = [step if size > 1 else 0 for size, step in zip(sizes[:3], steps[:3], strict=True)]
        is_float = self.mask.dtype == torch.float32
        return (
            self.mask.data_ptr(), int(is_float), texts, heads, *apart, steps[3], _call.address(self.places), sizes[3],
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The keys that blocks of queries see, for attention of the same texts over the same mask."""

    words: Tensor
    cost: int
    """Queries times keys, of all blocks of all planes."""


@dataclass(frozen=True)
class Setting:
    """What there is beside the operands. causal: a row sees those up to it."""

    texts: Texts
    scale: float
    causal: bool = False
    seen: Seen = Seen()
    plan: Plan | None = None

    def numbers(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Numbers, Numbers, Numbers, int]:
        sizes = q.shape[1], k.shape[1], q.shape[-1], v.shape[-1], int(self.causal)
        return self.texts.numbers, sizes, self.seen.numbers(self.texts), self._plan

    @property
    def _plan(self) -> int:
        return 0 if self.plan is None else self.plan.words.data_ptr()


def plan(texts: Texts, seen: Seen) -> Plan:
    """Looks at the mask once."""
    assert seen.mask is not None
    if seen.mask.dtype not in (torch.bool, torch.float32):
        raise TypeError(f"mask must be bool or float32, got {seen.mask.dtype}")
    size = _call.native.attention_plan_size(texts.numbers, seen.numbers(texts))
    words = torch.empty(max(size, 1), dtype=torch.int64, device="cpu")
    threads = torch.get_num_threads()
    cost = (
        -1 if size < 0 else _call.native.attention_plan(texts.numbers, seen.numbers(texts), words.data_ptr(), threads)
    )
    if cost < 0:
        _call.refuse_changed("offsets and tokens")
    return Plan(words, cost)


def readable(mask: Tensor) -> Tensor:
    """A mask that kernels read: bool or float32. Of what repeats (strides of 0) no more is converted than there is."""
    if mask.dtype in (torch.bool, torch.float32):
        return mask
    once = mask[tuple(slice(None) if step else slice(1) for step in mask.stride())]
    return once.float().expand(mask.shape)


def heads(x: Tensor, name: str, packed: bool) -> Numbers:
    """`Heads` in csrc/kernels.h, of x[T, heads, width] or [B, heads, S, width]."""
    _call.tensor(x, name, ndim=3 if packed else 4, dtypes=(torch.float32,), contiguous=False)
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        raise ValueError(f"{name} must be contiguous along its last dimension, got strides {x.stride()}")
    if packed:
        return x.data_ptr(), 0, x.stride(0), x.stride(1)
    return x.data_ptr(), x.stride(0), x.stride(2), x.stride(1)


def _operands(packed: bool, **named: Tensor) -> list[Numbers]:
    return [heads(x.unsqueeze(-1) if name == "lse" else x, name, packed) for name, x in named.items()]


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting) -> None:
    """out, and lse, the logarithm of the sum of exp(score), of operands [T, heads, width] or [B, heads, S, width]."""
    q_at, k_at, v_at, out_at, lse_at = _operands(setting.texts.offsets is not None, q=q, k=k, v=v, out=out, lse=lse)
    numbers, threads = setting.numbers(q, k, v), torch.get_num_threads()
    size = _call.native.attention_workspace(*numbers, threads)
    workspace = torch.empty(max(size, 0), dtype=torch.uint8, device="cpu")
    if size < 0 or not _call.native.attention(
        q_at, k_at, v_at, out_at, lse_at, *numbers, setting.scale, workspace.data_ptr(), threads
    ):
        _call.refuse_changed("offsets")


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    setting: Setting,
) -> None:  # fmt: skip
    """Writes the gradients dq, dk and dv."""
    packed = setting.texts.offsets is not None
    dout_at, q_at, k_at, v_at, out_at, lse_at = _operands(packed, dout=dout, q=q, k=k, v=v, out=out, lse=lse)
    dq_at, dk_at, dv_at = _operands(packed, dq=dq, dk=dk, dv=dv)
    numbers, threads = setting.numbers(q, k, v), torch.get_num_threads()
    size = _call.native.attention_backward_workspace(numbers[1], threads)
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    if not _call.native.attention_backward(
        dout_at, q_at, k_at, v_at, out_at, lse_at, dq_at, dk_at, dv_at, *numbers, setting.scale,
        workspace.data_ptr(), threads,
    ):  # fmt: skip
        _call.refuse_changed("offsets")

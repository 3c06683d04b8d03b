"""One pass over the data: what linear layers and convolutions read, and where attention looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gossamer.profile.batches import Batch

ROWS = 32
"""Rows of a linear layer's input that are kept, to try thresholds on."""
_HIDDEN = -1e4
"""What a mask adds to scores of keys that are hidden, or less."""
QUERIES = 16
"""The last queries of each text, whose attention is looked at."""


@dataclass(eq=False)
class Inputs:
    """What a layer read in all batches.

    Attributes:
        module: the layer. zeros, total: elements of its inputs that are zero, and all.
        rows: of a linear layer, up to `ROWS` rows [rows, in]; None before it ran, and for convolutions.
        many: rows, or pixels, of its largest call.
    """

    module: nn.Module
    zeros: int = 0
    total: int = 0
    rows: Tensor | None = None
    many: int = 0

    @property
    def share(self) -> float:
        """Of zeros."""
        return self.zeros / self.total if self.total else 0.0

    def see(self, x: Tensor) -> None:
        x = x.detach()
        self.zeros += x.numel() - int(torch.count_nonzero(x))
        self.total += x.numel()
        if isinstance(self.module, nn.Linear):
            flat = x.reshape(-1, x.shape[-1])
            self.many = max(self.many, len(flat))
            if self.rows is None and len(flat):
                some = torch.linspace(
                    0, len(flat) - 1, min(ROWS, len(flat)), dtype=torch.float64, device=x.device
                ).long()
                self.rows = flat[some].clone()


@dataclass(eq=False)
class Looked:
    """Where one attention looked: for each query that was taken, the share of its softmax by pages of keys.

    Attributes:
        mass: float32[queries, key heads, pages], each row sums to 1. lengths: int64[queries], keys that each could see.
        heads, key_heads, width: of the attention.
    """

    mass: list[Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    heads: int = 0
    key_heads: int = 0
    width: int = 0


@dataclass(eq=False)
class Seen:
    """What a pass over the data showed.

    Attributes:
        inputs: name of each linear layer and convolution that ran -> what it read.
        order: the names in the order in which they first ran.
        attention: of each causal attention in the order of a pass.
        other_attention: calls of attention that are not causal.
    """

    inputs: dict[str, Inputs] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    attention: dict[int, Looked] = field(default_factory=dict)
    other_attention: int = 0


def observed(model: nn.Module, batches: list[Batch], page: int) -> Seen:
    """Run all batches and look on.

    Raises:
        ValueError: a batch that the model does not take, with what it said.
    """
    seen = Seen()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    with hooked(layers, lambda name, module, x: _see(seen, name, module, x)):
        for at, batch in enumerate(batches):
            with _Attention(seen, batch, page):
                try:
                    batch.run(model)
                except (MemoryError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    kind = type(model).__name__
                    raise ValueError(f"batches: {kind} does not take batch {at} ({batch}): {_said(error)}") from error
    return seen


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _see(seen: Seen, name: str, module: nn.Module, x: Tensor) -> None:
    if name not in seen.inputs:
        seen.inputs[name] = Inputs(module)
        seen.order.append(name)
    seen.inputs[name].see(x)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], look: Any) -> Iterator[None]:
    """Inside, `look(name, module, input)` is called before each of these modules runs."""

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
            if isinstance(x, Tensor):
                look(name, module, x)

        return before

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
        yield


class _Attention(TorchFunctionMode):
    """Looks at the calls of scaled_dot_product_attention in one pass."""

    def __init__(self, seen: Seen, batch: Batch, page: int) -> None:
        super().__init__()
        self.seen, self.batch, self.page, self.at = seen, batch, page, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                self._see(*args, **kwargs)
            self.at += 1
        return func(*args, **kwargs)

    def _see(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        if query.dim() != 4 or query.shape[2] != key.shape[2] or not (is_causal or self._causal(attn_mask)):
            self.seen.other_attention += 1
            return
        found = self.seen.attention.setdefault(self.at, Looked())
        found.heads, found.key_heads, found.width = query.shape[1], key.shape[1], query.shape[3]
        group = query.shape[1] // key.shape[1]
        scale = query.shape[3] ** -0.5 if scale is None else scale
        for row in range(len(query)):
            real = self._real(row, query.shape[2])
            at = real[-QUERIES:]
            scores = query[row, :, at].float() @ key[row].repeat_interleave(group, 0).float().mT * scale
            keys = torch.arange(key.shape[2], device=key.device)
            visible = (keys <= at[:, None]) & torch.isin(keys, real)
            if attn_mask is not None:
                mask = attn_mask.expand(len(query), query.shape[1], *attn_mask.shape[-2:])[row][:, at]
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
            first = int(real[0])
            pages = F.pad(weights[:, :, first:], (0, -(key.shape[2] - first) % self.page))
            mass = pages.unflatten(-1, (-1, self.page)).sum(-1)  # [heads, queries, pages]
            mass = mass.unflatten(0, (key.shape[1], group)).mean(1).transpose(0, 1)
            found.mass += list(mass.cpu())
            found.lengths += (at - first + 1).tolist()

    def _real(self, row: int, tokens: int) -> Tensor:
        """Where tokens that are no padding are."""
        mask = self.batch.mask
        if mask is None or mask.shape[1] != tokens:
            return torch.arange(tokens, device="cpu")
        return mask[row].nonzero()[:, 0].cpu()

    @staticmethod
    def _causal(mask: Tensor | None) -> bool:
        """Whether the first query of a mask sees less than the last one."""
        if mask is None or mask.shape[-2] < 2:
            return False
        hidden = ~mask if mask.dtype == torch.bool else mask <= _HIDDEN
        return bool((hidden[..., :-1, -1]).all())

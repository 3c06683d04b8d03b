"""masked_attention: attention over a mask that is known at run time only, of whose zeros nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.handles import owner_of
from gossamer.kernels.reference import masked_attention as plain
from gossamer.kernels.texts import HIDDEN
from gossamer.measure import clock
from gossamer.ops.attention.arguments import check_mask, check_operands, once
from gossamer.ops.attention.site import SHARED, SKIP, MaskSite
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.registration import Backend, check_backend, load_kernel, register, register_opaque
from gossamer.ops.transforms import is_transformed
from gossamer.planner.tuner.trial import DENSE

LEAST_SCORES = 2**20
"""Scores of all heads below which nothing is looked for."""
MOST_SEEN = 0.9
"""The share of keys beyond which no block can be left out."""
_EIGHT = 0x0101010101010101
"""Eight bools that are true."""
_FREE = 0.01  # of dense attention: looking at the mask in vain for less than that is no loss

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _empty_like(x: Tensor, width: int) -> Tensor:
    """[B, heads, rows, width], in memory as [B, rows, heads, width]: so torch's own attention returns it."""
    texts, heads, rows, _ = x.shape
    strides = (rows * heads * width, width, heads * width, 1)
    return torch.empty_strided((texts, heads, rows, width), strides, dtype=x.dtype, device=x.device)


def _fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_like(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(q, q.shape[3]), _empty_like(k, k.shape[3]), _empty_like(v, v.shape[3])


forward_on = register(
    "masked_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> (Tensor, Tensor)",
    _fake,
    anyhow=(0, 1, 2, 3),
)
backward_on = register(
    "masked_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, Tensor lse, float scale) -> "
    "(Tensor, Tensor, Tensor)",
    _fake_backward,
    anyhow=(0, 1, 2, 3, 4, 5),
    module="masked_attention",
)


def _choose(
    question: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, site: Tensor | None, scale: float,
    dense: Callable[[Tensor | None], Any], skip: Callable[..., Any],
) -> Any:  # fmt: skip
    """What the faster of both returns, by what earlier calls of masks that show as much took."""
    if q.shape[3] != v.shape[3] or q.numel() == 0 or k.numel() == 0:  # not for torch's kernel
        return skip(setting=None)
    if q.numel() * k.shape[2] < LEAST_SCORES * q.shape[3]:
        return dense(mask)
    sampled = _sampled(mask)
    if sampled > MOST_SEEN:
        return dense(None if sampled == 1 and _hides_nothing(mask) else mask)
    place = SHARED if site is None else owner_of(site, MaskSite)
    shapes = (q.shape, k.shape, v.shape, q.dtype, mask.dtype, mask.shape, torch.get_num_threads())
    if place.rests(shapes):
        return dense(mask)
    begin = clock.now()
    setting, density = load_kernel("cpu", "masked_attention", "find_seen")(q, k, mask, scale)
    looked = clock.now() - begin
    tuner = place.tuner(shapes, density, q.dtype)
    choice = tuner.choose(question, (DENSE, SKIP), shapes, {"mask": density})
    begin = clock.now()
    found = skip(setting=setting) if choice == SKIP else dense(mask)
    seconds = clock.now() - begin
    tuner.observe(question, choice, seconds + (looked if choice == SKIP else 0.0), {"mask": density})
    if choice == DENSE and density > MOST_SEEN and looked > _FREE * seconds:
        place.rest(shapes)
    return found


def _sampled(mask: Tensor) -> float:
    """The share of keys that a few rows of the mask see."""
    few = mask[:: max(len(mask) // 2, 1), :1, :: max(mask.shape[2] // 16, 1)]
    seen = few if few.dtype == torch.bool else few > HIDDEN
    return int(seen.count_nonzero()) / max(seen.numel(), 1)


def _hides_nothing(mask: Tensor) -> bool:
    """Whether attention without the mask is the same: many a mask of padding has none to hide."""
    single = once(mask)
    if single.dtype != torch.bool:
        return not single[..., :1, :].any() and not single.any()
    if single.is_contiguous() and single.numel() % 8 == 0:  # eight at a time, for torch looks at bools one by one
        return int(single.view(-1).view(torch.int64).amin()) == _EIGHT
    return bool(single.all())


def _added(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as what torch's kernel adds to scores; of what repeats no more is converted than there is."""
    if mask is None:
        return None
    single = once(mask)
    if single.dtype == torch.bool:
        single = torch.zeros(single.shape, dtype=q.dtype, device="cpu").masked_fill_(~single, -torch.inf)
    return single.to(q.dtype).expand(*q.shape[:3], k.shape[2])


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, site: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    def dense(mask: Tensor | None) -> tuple[Tensor, Tensor]:
        out, sums = _flash(_rows(q), _rows(k), _rows(v), attn_mask=_added(mask, q, k), scale=scale)
        return out, sums.contiguous()

    skip = partial(load_kernel("cpu", "masked_attention", "masked_attention"), q, k, v, mask, scale)
    found: tuple[Tensor, Tensor] = _choose("forward", q, k, v, mask, site, scale, dense, skip)
    return found


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, lse: Tensor, site: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def dense(mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        given = (_rows(x) for x in (dout, q, k, v, out))
        found = _flash_backward(*given, lse, 0.0, False, attn_mask=_added(mask, q, k), scale=scale)
        dq, dk, dv = (_empty_like(x, x.shape[3]).copy_(x) if not _is_new(x) else x for x in found)
        return dq, dk, dv

    kernel = load_kernel("cpu", "masked_attention", "masked_attention_backward")
    skip = partial(kernel, dout, q, k, v, mask, out, lse, scale)
    found: tuple[Tensor, Tensor, Tensor] = _choose("backward", q, k, v, mask, site, scale, dense, skip)
    return found


def _is_new(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()


opaque_forward = register_opaque(
    "choose_masked_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor mask, Tensor? site, float scale) -> (Tensor, Tensor)",
    _forward,
    _fake,
)
opaque_backward = register_opaque(
    "choose_masked_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, Tensor lse, Tensor? site, float scale) -> "
    "(Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class MaskedAttention(Differentiable):
    """q[B, H, S, d], k[B, Hk, Sk, d], v[B, Hk, Sk, dv] -> out[B, H, S, dv]; with a backend nothing is chosen."""

    name = "masked_attention"
    operands = (0, 1, 2)

    @staticmethod
    def _run(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor, site: Tensor | None, scale: float, backend: Backend | None
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor]
        if backend is None:
            found = opaque_forward(q, k, v, mask, site, scale)
        else:
            found = forward_on(backend)(q, k, v, mask, scale)
        return found

    @staticmethod
    def compute(*args: Any) -> Tensor:
        return MaskedAttention._run(*args)[0]

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, site: Tensor | None, scale: float,
        backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        out, lse = MaskedAttention._run(q, k, v, mask, site, scale, backend)
        save(ctx, q, k, v, mask, out, lse, site)
        ctx.scale, ctx.backend = scale, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse, site = ctx.saved_tensors
        want = ctx.needs_input_grad[:3]
        found: Any
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _differentiable(grad, q, k, v, mask, ctx.scale, want)
        elif ctx.backend is None:
            found = opaque_backward(grad, q, k, v, mask, out, lse, site, ctx.scale)
        else:
            found = backward_on(ctx.backend)(grad, q, k, v, mask, out, lse, ctx.scale)
        return *(each if wanted else None for each, wanted in zip(found, want, strict=True)), *[None] * 4


def _differentiable(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, want: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients by torch's own operators, whose derivatives torch knows."""
    out = plain.masked_attention(q, k, v, mask, scale)[0]
    asked = [x for x, wanted in zip((q, k, v), want, strict=True) if wanted]
    found = iter(torch.autograd.grad(out, asked, grad, create_graph=True))
    return [next(found) if wanted else None for wanted in want]


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    site: MaskSite | Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """torch's scaled_dot_product_attention over a mask, of which only what some query sees is computed where that pays.

    The mask is looked at when it is there: rows that follow one another make blocks (rows that see much more than
    theirs, such as global tokens, make blocks of their own), and a block meets only the keys that one of its rows sees,
    wherever these are. Sliding windows, global tokens, documents, causal masks, blocks and padding need no other
    description. Differentiable in q, k and v, to any order.

    Args:
        q: [B, H, S, d]. float32, bfloat16 or float16 on a CPU can skip; all else is torch's own operator.
        k: [B, Hk, Sk, d] of q's dtype; Hk divides H, and H // Hk heads of q in a row share one of k and v.
        v: [B, Hk, Sk, dv] of q's dtype.
        mask: what broadcasts to [B, H, S, Sk]: bool (True: is seen) or float, which is added to scores; at -1e30 and
            below it hides, except in rows that see nothing else. A float mask that wants a gradient is left to torch.
        scale: None for d ** -0.5.
        dropout: must be 0.
        site: what remembers times: a `MaskSite`, or its handle. Without it calls share one, by shapes.
        backend: None chooses by what calls took, shape by shape and tenth by tenth of what is seen; "cpu" insists on
            skipping, "reference" on the formula in float64.

    Returns:
        [B, H, S, dv], in memory as [B, S, H, dv]; equal to torch's to rounding. A query that sees nothing gets zeros.
        NaN in a key or value that no query of a block sees does not reach the block.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed.

    Source: sparsity that is known at run time only, in micro-tiles of some queries by one key (PIT, SOSP 2023).

    >>> x = torch.tensor([[[[1.0], [2.0], [6.0]]]])
    >>> seen = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    >>> masked_attention(0 * x, x, x, seen).flatten()
    tensor([1.5000, 6.0000, 0.0000])
    """
    check_operands(q, k, v, "B")
    wide = _four_dimensions(mask, q, k)
    if dropout != 0:
        raise ValueError(f"dropout must be 0, for weights that are dropped are not looked for, got {dropout!r}")
    if site is not None and not isinstance(site, (MaskSite, Tensor)):
        raise TypeError(f"site must be a gossamer.ops.MaskSite, its handle or None, got {type(site).__name__}")
    check_backend(backend, "q", q)
    factor = q.shape[3] ** -0.5 if scale is None else float(scale)
    if backend is None and (q.device.type != "cpu" or q.dtype == torch.float64 or _is_torchs(q, k, v, wide)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=wide, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if wide.requires_grad:
        raise ValueError("mask must not require a gradient where a backend is insisted on: detach it")
    handle = site.handle if isinstance(site, MaskSite) else site
    out: Tensor = MaskedAttention.call(q, k, v, wide, handle, factor, backend)
    return out


def _is_torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> bool:
    """What only torch's own operator can do."""
    return mask.requires_grad or is_transformed(q, k, v, mask)


def _four_dimensions(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The mask as [B or 1, H or 1, S or 1, Sk]: a view."""
    if isinstance(mask, Tensor) and mask.dim() < 4:
        mask = mask[(None,) * (4 - mask.dim())]
    check_mask(mask, q)
    expected = (*q.shape[:3], k.shape[2])
    if mask.shape[3] == 1 != k.shape[2]:
        mask = mask.expand(*mask.shape[:3], k.shape[2])
    if any(size not in (1, wanted) for size, wanted in zip(mask.shape, expected, strict=True)):
        raise ValueError(f"mask must broadcast to [B, H, S, Sk] = {tuple(expected)}, got shape {tuple(mask.shape)}")
    return mask

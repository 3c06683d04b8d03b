"""varlen_attention: softmax attention of texts that lie one behind the other, each within itself."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gossamer.kernels.reference import varlen_attention as plain
from gossamer.ops.attention.arguments import check_mask, check_operands, check_share
from gossamer.ops.autograd import Differentiable, save
from gossamer.ops.registration import Backend, check_backend, register
from gossamer.pattern.check import check_tensor

Kind = Literal["full", "causal", "masked"]
KINDS: dict[str, int] = {"full": 0, "causal": 1, "masked": 2}


def _fake(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, kind: Tensor, mask: Tensor | None, tokens: Tensor | None,
    seed: Tensor | None, dropout: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, _ = q.shape
    lse = q.new_empty(rows, heads, dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(rows, heads, v.shape[2]), lse


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, kind: Tensor,
    mask: Tensor | None, tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, by_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dmask = q.new_empty(0) if mask is None or not by_mask else mask.new_empty(mask.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dmask


_SIGHT = "Tensor offsets, Tensor kind, Tensor? mask, Tensor? tokens, Tensor? seed, float dropout, float scale"
forward_on = register(
    "varlen_attention",
    f"(Tensor q, Tensor k, Tensor v, {_SIGHT}) -> (Tensor, Tensor)",
    _fake,
    anyhow=(0, 1, 2, 5),
)
backward_on = register(
    "varlen_attention_backward",
    f"(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SIGHT}, bool by_mask) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    anyhow=(1, 2, 3, 8),
    module="varlen_attention",
)


class VarlenAttention(Differentiable):
    """q[T, H, d], k[T, Hk, d], v[T, Hk, dv], mask -> out[T, H, dv]."""

    name = "varlen_attention"
    operands = (0, 1, 2, 3)

    @staticmethod
    def compute(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, offsets: Tensor, kind: Tensor, tokens: Tensor | None,
        seed: Tensor | None, dropout: float, scale: float, backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        out: Tensor = forward_on(backend)(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale)[0]
        return out

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, offsets: Tensor, kind: Tensor,
        tokens: Tensor | None, seed: Tensor | None, dropout: float, scale: float, backend: Backend | None,
    ) -> Tensor:  # fmt: skip
        sight = (offsets, kind, mask, tokens, seed)
        out: Tensor
        out, lse = forward_on(backend)(q, k, v, *sight, dropout, scale)
        save(ctx, q, k, v, out, lse, *sight)
        ctx.dropout, ctx.scale, ctx.backend = dropout, scale, backend
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *sight = ctx.saved_tensors
        by_mask = ctx.needs_input_grad[3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _differentiable(grad, q, k, v, sight, ctx.dropout, ctx.scale, ctx.needs_input_grad)
        else:
            found = backward_on(ctx.backend)(grad, q, k, v, out, lse, *sight, ctx.dropout, ctx.scale, by_mask)
        wanted = (each if want else None for each, want in zip(found, ctx.needs_input_grad[:4], strict=True))
        return *wanted, *[None] * 7


def _differentiable(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sight: list[Any], dropout: float, scale: float,
    want: tuple[bool, ...],
) -> list[Tensor | None]:  # fmt: skip
    """The gradients by torch's own operators, whose derivatives torch knows."""
    offsets, kind, mask, tokens, seed = sight
    out = plain.varlen_attention(q, k, v, offsets, kind, mask, tokens, seed, dropout, scale)[0]
    places = [at for at in range(4) if want[at]]
    operands = (q, k, v, mask)
    found = torch.autograd.grad(out, [operands[at] for at in places], grad, create_graph=True)
    by_place = dict(zip(places, found, strict=True))
    return [by_place.get(at) for at in range(4)]


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    kind: Kind | Tensor = "full",
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: Backend | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v of each text by itself, of texts packed one behind the other: nothing is padded.

    Differentiable in q, k, v and a float mask, to any order. How long the texts are is data: under torch.compile one
    graph serves all of them, and one with `kind` as a tensor also all kinds.

    Args:
        q: [T, H, d], float64, float32, bfloat16 or float16.
        k: [T, Hk, d] of q's dtype; Hk divides H, and H // Hk heads of q in a row share one of k and v.
        v: [T, Hk, dv] of q's dtype. Views into one projection of queries, keys and values are read where they lie.
        offsets: int64 [B + 1] on q's device, from 0 to T, never decreasing: text b has the rows
            offsets[b]:offsets[b + 1]; it may be empty.
        kind: what a token sees: "full", all of its text; "causal", itself and what comes before it in its text;
            "masked", what `mask` says. Or int64[] on the CPU, 0, 1 or 2 in this order, which decides at run time.
        mask: [B or 1, H or 1, S or 1, S], bool (True: is seen) or float, which is added to the scores. Read where
            `kind` is "masked" only, and where it lies: an expanded view is not copied.
        tokens: int64 [T], in text b b * S + s: the token's row and column of the mask.
        scale: None for d ** -0.5.
        dropout: the share of weights that are dropped; the others grow by 1 / (1 - dropout). Drawn from a seed that
            torch's generator of the CPU gives, so that `torch.manual_seed` repeats it.
        backend: None for the kernels of q's device; "cpu", "triton" or "reference" to insist.

    Returns:
        [T, H, dv] of q's dtype, contiguous. A token that sees nothing gets zeros, as in torch. Half floats are summed
        in float32. On a CPU, dropout, a gradient by the mask and dv != d go through a matrix of the scores of a text.

    Raises:
        TypeError, ValueError: naming the argument. RuntimeError: kernels that are not installed; torch.func, forward
        differentiation.

    Source: packing without padding as in Effective Transformers (ByteDance, 2020) and FlashAttention's varlen functions
    (Dao, 2023).

    >>> x = torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1)
    >>> varlen_attention(x * 0, x, x, torch.tensor([0, 2, 3])).flatten()
    tensor([2., 2., 5.])
    """
    check_operands(q, k, v, "T")
    _check_offsets(offsets, q)
    number = _number(kind)
    if mask is not None:
        check_mask(mask, q)
    if isinstance(kind, str) and kind == "masked" and (mask is None or tokens is None):
        raise ValueError(f"{'mask' if mask is None else 'tokens'} must be given with kind='masked', got None")
    _check_tokens(tokens, q)
    check_share("dropout", dropout)
    check_backend(backend, "q", q)
    seed = torch.randint(2**62, (), device="cpu") if dropout > 0 else None
    factor = q.shape[2] ** -0.5 if scale is None else float(scale)
    out: Tensor = VarlenAttention.call(q, k, v, mask, offsets, number, tokens, seed, float(dropout), factor, backend)
    return out


def _number(kind: Kind | Tensor) -> Tensor:
    if isinstance(kind, Tensor):
        if kind.dtype != torch.int64 or kind.dim() != 0 or kind.device.type != "cpu":
            raise TypeError(f"kind must be int64[] on the CPU, got {kind.dtype} {tuple(kind.shape)} on {kind.device}")
        return kind
    if kind not in KINDS:
        raise ValueError(f"kind must be 'full', 'causal', 'masked' or a tensor of its number, got {kind!r}")
    return torch.tensor(KINDS[kind], device="cpu")


def _check_offsets(offsets: Tensor, q: Tensor) -> None:
    check_tensor("offsets", offsets)
    if offsets.dtype != torch.int64:
        raise TypeError(f"offsets must be int64, got {offsets.dtype}")
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must have shape [texts + 1], got {tuple(offsets.shape)}")
    if offsets.device != q.device:
        raise ValueError(f"offsets must be on q's device {q.device}, got {offsets.device}")


def _check_tokens(tokens: Tensor | None, q: Tensor) -> None:
    if tokens is None:
        return
    check_tensor("tokens", tokens)
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens must be int64, got {tokens.dtype}")
    if tokens.dim() != 1 or tokens.shape[0] != q.shape[0]:
        raise ValueError(f"tokens must have shape [{q.shape[0]}], one for each row of q, got {tuple(tokens.shape)}")
    if tokens.device != q.device:
        raise ValueError(f"tokens must be on q's device {q.device}, got {tokens.device}")

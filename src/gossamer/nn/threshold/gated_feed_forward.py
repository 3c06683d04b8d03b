"""A gated feed-forward block that computes only the neurons whose gate is open when it decodes (CATS, Deja Vu)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.nn.evaluating import evaluating
from gossamer.nn.skip.linear import Linear
from gossamer.nn.threshold.linear import check_reorder, dense_linear, is_few, skips, store_by_input
from gossamer.nn.threshold.magnitudes import Magnitudes
from gossamer.nn.threshold.record import write
from gossamer.nn.threshold.thresholded import Thresholded, check_threshold
from gossamer.ops.decoding import decode
from gossamer.ops.gemv import ZERO
from gossamer.wrappers import unwrap

Activation = Literal["relu", "silu", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
_PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedFeedForward(Thresholded):
    """y = down_proj(g * up_proj(x)), g = act_fn(gate_proj(x)) where |g| > threshold, else 0.

    With at most 8 rows the neurons whose gate is closed cost less: `gs.ops.gated_mv` reads the rows of `up_proj` that
    are open, and `gs.ops.skip_mv` the columns of `down_proj` if that is stored by input channel (see `reorder`), where
    that is faster on a CPU, as in `gossamer.nn.ThresholdLinear`. More rows, training, and types without a kernel take
    the dense products of the same numbers. The function does not depend on how many rows share a call.

    ReLU closes gates by itself and needs no threshold: the block then equals the dense one. SiLU and GELU close few;
    `calibrate`, or `gs.nn.threshold` for a whole model, puts the threshold where a chosen share of gates is closed.

    Parts and state_dict are named as in the feed-forward blocks of Llama, Mistral, Qwen and Gemma; see `gs.nn.gated`.

    Args:
        dim, hidden: features outside and inside.
        activation: of the gate: "relu", "silu", "gelu", or a module.
        bias: of all three products.
        threshold: at least 0, in units of the activated gate.
        reorder: store `down_proj.weight` by input channel, as in `gossamer.nn.ThresholdLinear`: one copy, the same
            Parameter, whose strides change.

    Source: Lee et al., "CATS: contextually-aware thresholding for sparsity in large language models", 2024 (threshold
    on the activated gate); Liu et al., "Deja Vu", 2023 (neurons chosen per token).

    >>> block = GatedFeedForward(8, 32)
    >>> block(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    act_fn: nn.Module
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    reorder: bool

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation | nn.Module = "relu",
        bias: bool = False,
        *,
        threshold: float = 0.0,
        reorder: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_threshold("threshold", threshold)
        check_reorder(reorder)
        if not isinstance(activation, nn.Module) and activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(_ACTIVATIONS)} or a module, got {activation!r}")
        super().__init__()
        self.act_fn = activation if isinstance(activation, nn.Module) else _ACTIVATIONS[activation]()
        self.gate_proj = nn.Linear(dim, hidden, bias, device=device, dtype=dtype)
        self.up_proj = nn.Linear(dim, hidden, bias, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden, dim, bias, device=device, dtype=dtype)
        self._adopt(threshold, reorder)

    @classmethod
    def from_dense(cls, block: nn.Module, *, threshold: float = 0.0, reorder: bool = False) -> GatedFeedForward:
        """Take over gate_proj, up_proj, down_proj and act_fn of a block that computes down(act(gate(x)) * up(x)).

        The very modules are taken, so the Parameters stay those that an optimizer or a tied model knows, and the names
        in the state_dict do not change.

        Raises:
            ValueError: the parts are missing or do not fit, or the block computes something else.
        """
        check_threshold("threshold", threshold)
        check_reorder(reorder)
        reason = why_not_gated(block)
        if reason is not None:
            raise ValueError(f"block cannot become a GatedFeedForward: {reason}")
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name in ("act_fn", *_PARTS):
            setattr(self, name, getattr(block, name))
        self._adopt(threshold, reorder)
        self.train(block.training)
        return self

    def _adopt(self, threshold: float, reorder: bool) -> None:
        self.threshold, self.reorder = threshold, reorder
        self.start_counting(self.down_proj.weight.device)
        if reorder:
            store_by_input(self.down_proj)
        self.register_load_state_dict_post_hook(_store_again)

    def forward(self, x: Tensor) -> Tensor:
        """x[..., dim] -> [..., dim]."""
        gate = self.shrunk(self.act_fn(self.gate_proj(x)))
        up, down = self.up_proj, self.down_proj
        if is_few(x) and _is_bare(up) and _is_bare(down) and gate.dtype == x.dtype and skips(x, up, down):
            rows, open_ = x.reshape(-1, x.shape[-1]), gate.reshape(-1, gate.shape[-1])
            y, kept = decode(rows, down.weight, down.bias, ZERO, self.tuner, open_, up.weight, up.bias)
            self.count(kept, open_.numel())
            return y.view(*x.shape[:-1], y.shape[-1])
        inner = gate * up(x)
        return dense_linear(down, inner) if _is_bare(down) and type(down) is nn.Linear else down(inner)

    def calibrate(self, data: Tensor | Iterable[Tensor], sparsity: float) -> float:
        """Set the threshold so that a share `sparsity` of gates is closed on data, inputs [..., dim] of this block.

        Returns:
            the threshold. ReLU's own zeros count; where they are more than asked for, it is 0.

        Raises:
            ValueError: sparsity outside [0, 1), no data, NaN.
        """
        check_sparsity(sparsity)
        seen = Magnitudes()
        with torch.no_grad():
            for x in (data,) if isinstance(data, Tensor) else data:
                seen.add(self.act_fn(self.gate_proj(x)))
        if not seen.total:
            raise ValueError("data is empty")
        self.threshold = seen.threshold(sparsity) if sparsity else 0.0
        return self.threshold

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:.4g}"


def gated(model: nn.Module, *, threshold: float = 0.0, reorder: bool = False) -> dict[str, GatedFeedForward]:
    """Replace every block down(act(gate(x)) * up(x)) of a model by a GatedFeedForward on the same Parameters.

    Found by the names gate_proj, up_proj, down_proj and act_fn (Llama, Mistral, Qwen, Gemma and their relatives in
    transformers) and checked: a block whose output on random rows is another one is left alone. The state_dict keeps
    its names. Nothing is skipped before gates are closed: give a threshold, or call `gs.nn.threshold` afterwards,
    which calibrates one for each block. A model of transformers saves in its config which blocks are gated.

    Returns:
        the new blocks by name.

    Raises:
        ValueError: no such block; the message says what each one that looks like one lacks.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 8)
    ...         self.act_fn = nn.SiLU()
    ...     def forward(self, x):
    ...         return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    >>> list(gated(nn.Sequential(Block(), Block())))
    ['0', '1']
    """
    check_threshold("threshold", threshold)
    check_reorder(reorder)
    model = unwrap(model)
    left, found = {}, {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, GatedFeedForward) or not all(hasattr(module, part) for part in _PARTS):
            continue
        reason = "it is the model itself: use GatedFeedForward.from_dense" if not name else why_not_gated(module)
        if reason is None:
            found[name] = module
        else:
            left[name] = reason
    if not found:
        raise ValueError(
            "model has no block with gate_proj, up_proj, down_proj and act_fn to replace"
            + "".join(f"; {name!r}: {reason}" for name, reason in left.items())
        )
    blocks: dict[str, GatedFeedForward] = {}
    made = {
        module: GatedFeedForward.from_dense(module, threshold=threshold, reorder=reorder) for module in found.values()
    }
    for name, module in found.items():  # a block that is used in two places is one block in both
        parent, _, child = name.rpartition(".")
        blocks[name] = made[module]
        setattr(model.get_submodule(parent), child, made[module])
        setting = {"threshold": float(threshold), "prefill": "dense", "reorder": reorder, "gated": True}
        made[module].saved_as = made[module].saved_as or setting
    write(model, {name: block.saved_as or {} for name, block in blocks.items()})
    return blocks


def why_not_gated(block: nn.Module) -> str | None:
    """Why this block cannot be computed as a GatedFeedForward, or None."""
    for name in _PARTS:
        if not isinstance(getattr(block, name, None), nn.Linear):
            return f"{name} must be an nn.Linear, got {type(getattr(block, name, None)).__name__}"
    act = getattr(block, "act_fn", None)
    if not isinstance(act, nn.Module):
        return f"act_fn must be a module, got {type(act).__name__}"
    gate, up, down = (getattr(block, name) for name in _PARTS)
    if not (gate.weight.shape == up.weight.shape == down.weight.shape[::-1]):
        return f"shapes do not fit: {[tuple(part.weight.shape) for part in (gate, up, down)]}"
    if block._forward_hooks or block._forward_pre_hooks:
        return "it has forward hooks"
    try:
        x = (
            torch.linspace(-3, 3, 12 * gate.in_features, dtype=torch.float32, device=gate.weight.device)
            .sin()
            .view(12, -1)
        )
        x = x.to(gate.weight.dtype)
        with evaluating(block):
            expected = down(act(gate(x)) * up(x))
            found = block(x)
    except Exception as error:
        return f"it does not take rows of {gate.in_features} features ({type(error).__name__}: {error})"
    if not isinstance(found, Tensor) or found.shape != expected.shape or not torch.allclose(found, expected):
        return "its output is not down_proj(act_fn(gate_proj(x)) * up_proj(x))"
    return None


def _store_again(module: nn.Module, incompatible_keys: object) -> None:
    """After load_state_dict(assign=True), which brings another order."""
    if isinstance(module, GatedFeedForward) and module.reorder:
        store_by_input(module.down_proj)


def _is_bare(linear: nn.Module) -> bool:
    """Is reading its weight the same as calling it? Not for an adapter around it, and not with hooks."""
    if type(linear) is not nn.Linear and not (type(linear) is Linear and not linear.relu):
        return False
    return not linear._forward_hooks and not linear._forward_pre_hooks


def check_sparsity(sparsity: float) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity must be a number, got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")

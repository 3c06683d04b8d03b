"""Mixture of experts: every token goes through the feed-forward networks its router chose, none is dropped.

ids[t, j], gates[t, j] = top k of softmax(router(x[t]))        y[t] = sum over j of gates[t, j] * FFN_ids[t, j](x[t])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import ops
from gossamer.nn.fused import described, up_name
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern
from gossamer.pattern.build import route
from gossamer.pattern.check import require, sized

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Experts(nn.Module):
    """Feed-forward experts behind a top-k router. Dropless: any skew of the routing gives the exact answer.

    Both products of all experts are one grouped product each (`gossamer.ops.grouped_matmul`), which share one index;
    tokens are read where they lie and results stored where they belong. Nothing waits for the device.

    Args:
        dim: features of a token.
        hidden: features between the two products of an expert.
        experts: number of experts.
        top_k: experts a token goes through: 1 (Switch Transformer) or more.
        gated: down(act(x up_a) * (x up_b)) in place of down(act(x up)), as in SwiGLU and Mixtral.
        activation: "relu", "gelu" or "silu".
        normalize: divide the gates of a token by their sum. None: when top_k > 1. (With top_k = 1 every gate would be
            1 and the router would get no gradient.)

    Attributes:
        router: nn.Linear(dim, experts) without bias.
        up: Parameter [experts, dim, hidden] ([experts, dim, 2 * hidden] when gated: first what is activated).
        down: Parameter [experts, hidden, dim].

    The result has the dtype of the weights, under autocast too. In bfloat16 and float16 every product is rounded once,
    and so is the weighted sum of a token's experts; gates and their softmax are float32.

    Raises:
        ValueError: sizes below 1, top_k above experts, an unknown activation.

    Source: Fedus et al., "Switch transformers", 2022 (eq. 2); Gale et al., "MegaBlocks", 2023 (dropless).

    >>> moe = Experts(8, 16, experts=4, top_k=2)
    >>> moe(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        experts: int,
        top_k: int = 1,
        gated: bool = False,
        activation: str = "relu",
        normalize: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("hidden", hidden), ("experts", experts), ("top_k", top_k)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")
        if top_k > experts:
            raise ValueError(f"top_k must be at most experts={experts}, got {top_k}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        self.dim, self.hidden, self.top_k = dim, hidden, top_k
        self.gated, self.activation, self.normalize = gated, activation, normalize
        self.router = nn.Linear(dim, experts, bias=False, device=device, dtype=dtype)
        self.up = nn.Parameter(torch.empty(experts, dim, hidden * (1 + gated), device=device, dtype=dtype))
        self.down = nn.Parameter(torch.empty(experts, hidden, dim, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_module(cls, module: nn.Module) -> FusedExperts:
        """Fused experts of transformers (Mixtral, Qwen3-MoE, OLMoE, DeepSeek, ...) as these, on the same Parameters.

        Args:
            module: with `gate_up_proj` or `up_proj`, `down_proj` and `act_fn`, as transformers' experts interface has.

        Returns:
            `FusedExperts`: forward(x, ids, gates); the names in the state dict stay. See `convert_experts` for a model.

        Raises:
            ValueError: naming what it computes that `Experts` does not.
        """
        reason = why_not_fused(module)
        if reason is not None:
            raise ValueError(f"module ({type(module).__name__}) cannot become Experts: {reason}")
        return FusedExperts(module)

    @property
    def experts(self) -> int:
        """Number of experts: as many as there are weights of."""
        return self.weights()[0].shape[0]

    def weights(self) -> tuple[Tensor, Tensor, bool]:
        """What both products multiply by, and whether each matrix is [outputs, inputs], as nn.Linear keeps it."""
        return self.up, self.down, False

    def reset_parameters(self) -> None:
        """As nn.Linear does: uniform in +-1 / sqrt(fan-in)."""
        self.router.reset_parameters()
        for weight in (self.up, self.down):
            bound = 1.0 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)

    def activated(self, x: Tensor) -> Tensor:
        """The activation of the hidden features."""
        return ACTIVATIONS[self.activation](x)

    def extra_repr(self) -> str:
        kind = f"gated {self.activation}" if self.gated else self.activation
        return f"{self.dim}, {self.hidden}, experts={self.experts}, top_k={self.top_k}, {kind}"

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x[T, dim] -> ids int64[T, top_k], gates[T, top_k], and the probabilities[T, experts] they come from.

        Gates and probabilities are float32 where the module is bfloat16 or float16.
        """
        scores = self.router(x)
        probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        gates, ids = probabilities.topk(self.top_k, dim=-1)
        if self.top_k > 1 if self.normalize is None else self.normalize:
            gates = gates / gates.sum(-1, keepdim=True)
        return ids, gates, probabilities

    def forward(self, x: Tensor, ids: Tensor | None = None, gates: Tensor | None = None) -> Tensor:
        """x[..., dim] -> [..., dim].

        Args:
            ids: integers [..., j], the experts of each token, in place of the router's choice; a negative id goes
                nowhere and counts as zero.
            gates: [..., j], their weights; None for weights of one.

        Raises:
            TypeError: ids that are no integers. ValueError: gates without ids, shapes that do not fit, an id for which
            there is no expert (on an accelerator an assertion on the device).
        """
        check_transforms("gossamer.nn.Experts", x)
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} features, got shape {tuple(x.shape)}")
        up, down, transposed = self.weights()
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(up.dtype)
        if x.dtype != up.dtype:
            raise TypeError(f"x must have the module's dtype {up.dtype}, got {x.dtype}: convert x or the module")
        if down.shape[0] != self.experts:
            raise ValueError(f"down must hold as many experts as up, {self.experts}, got {down.shape[0]}")
        flat = x.reshape(-1, self.dim)
        if ids is None:
            if gates is not None:
                raise ValueError("gates must come with ids: they are the weights of the experts named there")
            ids, gates, _ = self.route(flat)
        else:
            self._check_choice(x, ids, gates)
        # Sizes are read from shapes, not by len(), so that an exported graph takes any number of tokens.
        ids = ids.reshape(flat.shape[0], ids.shape[-1])
        offsets, order = route(ids.reshape(-1, 1), self.experts)
        index = Pattern(offsets, order, (self.experts, ids.numel()), (1, 1))
        inner = ops.grouped_matmul(self.entered(flat), up, ids, index=index, transposed=transposed).flatten(0, 1)
        inner = self.inner(inner, flat.shape[0])
        y = ops.grouped_matmul(inner, down, ids.reshape(-1), index=index, transposed=transposed)
        y = self.weighed(y.view(*ids.shape, self.dim), gates)
        return y.view(x.shape)

    def entered(self, x: Tensor) -> Tensor:
        """What the up products read of tokens [T, dim]: all of it."""
        return x

    def inner(self, up: Tensor, tokens: int) -> Tensor:
        """What the down products read, from what the up products of so many tokens gave."""
        if not self.gated:
            return self.activated(up)
        activated, linear = up.chunk(2, dim=-1)
        return self.activated(activated) * linear

    def weighed(self, y: Tensor, gates: Tensor | None) -> Tensor:
        """y[T, j, dim] of each expert of each token -> their sum, weighed by gates [..., j]."""
        return y.sum(1) if gates is None else (y * gates.reshape(*y.shape[:2], 1)).sum(1).to(y.dtype)

    def _check_choice(self, x: Tensor, ids: Tensor, gates: Tensor | None) -> None:
        _check_integers(ids)
        if ids.dim() != x.dim() or ids.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"ids must have shape {[*x.shape[:-1], 'j']}, got {list(ids.shape)}")
        if gates is not None and gates.shape != ids.shape:
            raise ValueError(f"gates must have the shape of ids {list(ids.shape)}, got {list(gates.shape)}")
        _check_below(ids, self.experts)


class FusedExperts(Experts):
    """`Experts` on the Parameters of fused experts of transformers, under their names. Somebody else routes.

    Made by `Experts.from_module`. Called as those are, forward(x, ids, gates), with the router's choice.
    """

    act_fn: nn.Module

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        name = up_name(module)
        assert name is not None
        for each in (name, "down_proj"):
            self.register_parameter(each, module.get_parameter(each))
        kept: Any = module
        self.act_fn, self.transposed = kept.act_fn, not kept.is_transposed
        self.gated, self.activation, self.normalize = name == "gate_up_proj", type(kept.act_fn).__name__, None
        down = self.get_parameter("down_proj")
        self.dim, self.hidden = down.shape[1:] if self.transposed else down.shape[:0:-1]
        self.top_k, self.num_experts, self.config = 0, len(down), getattr(kept, "config", None)
        self.train(module.training)

    def weights(self) -> tuple[Tensor, Tensor, bool]:
        """See `Experts`. What lies the other way round in memory is given that way."""
        up, down = self.stacks()
        if not up.is_contiguous() and up.mT.is_contiguous() and down.mT.is_contiguous():
            return up.mT, down.mT, not self.transposed
        return up, down, self.transposed

    def stacks(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The parameters of both products."""
        up = self.get_parameter("gate_up_proj" if self.gated else "up_proj")
        return up, self.get_parameter("down_proj")

    def activated(self, x: Tensor) -> Tensor:
        """The activation of the hidden features."""
        y: Tensor = self.act_fn(x)
        return y

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refuses: the router belongs to the block around."""
        raise ValueError("ids must be given: the router of fused experts belongs to the block around them")

    def reset_parameters(self) -> None:
        """Refuses: the numbers are those of the module that it was made from."""
        raise ValueError("fused experts are initialized by the model that they belong to")

    def extra_repr(self) -> str:
        kind = f"gated {self.activation}" if self.gated else self.activation
        return f"{self.dim}, {self.hidden}, experts={self.experts}, {kind}"


def why_not_fused(module: nn.Module) -> str | None:
    """Why fused experts compute something else than `Experts` does, or None."""
    if up_name(module) is None:
        return "it has no gate_up_proj or up_proj and down_proj of three dimensions"
    own: Any = module
    if getattr(own, "has_bias", False) or getattr(own, "has_post_expert_norm", False):
        return "it has a bias" if own.has_bias else "it has a norm behind each expert"
    lacks = [name for name in ("act_fn", "is_transposed", "has_gate") if not hasattr(module, name)]
    if lacks:
        return f"it has no {lacks[0]}, as modules of transformers' experts interface do"
    if own.has_gate and not (own.is_concatenated and own._apply_gate.__name__ == "_default_apply_gate"):
        return "its gate is not act_fn(first half) * second half"
    if own._is_expert_parallel:
        return "its experts are divided among processes"
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return "it has hooks, or its forward was replaced"
    return None


class ConvertedExperts:
    """What `convert_experts` did.

    Attributes:
        converted: name -> the new module.
        left: name -> why fused experts stay what they are.
    """

    def __init__(self, model: nn.Module, converted: dict[str, FusedExperts], left: dict[str, str]) -> None:
        self.converted, self.left = converted, left
        self._model, self._before = model, {name: model.get_submodule(name) for name in converted}
        self._put(converted)

    def undo(self) -> None:
        """Put the modules back that were there before."""
        self._put(self._before)

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(self._model.get_submodule(parent), child, module)

    def __str__(self) -> str:
        lines = [f"{name}: {each}" for name, each in self.converted.items()]
        return "\n".join(lines + [f"{name} stays: {why}" for name, why in self.left.items()])


def convert_experts(model: nn.Module) -> ConvertedExperts:
    """Replace the fused experts of a model of transformers by `Experts`, on the same Parameters. In place.

    Keys of the state dict stay, so an optimizer made before goes on and checkpoints fit both ways. Outputs and
    gradients are the same to rounding. (`model.set_experts_implementation("gossamer")` runs the same kernels and keeps
    the modules; this makes modules that are `gs.nn.Experts`.)

    Returns:
        what was converted, what was left and why; `undo()`.

    Raises:
        ValueError: no experts to convert; the message says why each stays.
    """
    converted, left = {}, {}
    for name, module in model.named_modules():
        if up_name(module) is None or isinstance(module, FusedExperts):
            continue
        reason = why_not_fused(module) if name else "it is the model itself: use Experts.from_module"
        if reason is None:
            converted[name] = FusedExperts(module)
        else:
            left[name] = f"{described(module)}: {reason}"
    if not converted:
        why = "".join(f"; {name!r}: {reason}" for name, reason in left.items())
        raise ValueError(f"model has no fused experts that can become gs.nn.Experts{why}")
    return ConvertedExperts(model, converted, left)


def balance_loss(probabilities: Tensor, ids: Tensor) -> Tensor:
    """Switch's auxiliary loss, eq. 4: experts * sum over e of (share of tokens sent to e) * (mean probability of e).

    1 when the load is even. Multiply by 0.01 and add it to the loss. A negative id goes nowhere and is not counted; a
    token without any expert, such as padding, takes no part at all. Without tokens the loss is 0.

    Args:
        probabilities: [T, experts], floats; half types are summed in float32.
        ids: integers [T, j], what was chosen.

    Returns:
        A number, float32 (float64 for float64). Differentiable in the probabilities.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> float(balance_loss(torch.full((4, 2), 0.5), torch.tensor([[0], [1], [0], [1]])))
    1.0
    """
    if probabilities.dim() != 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be floats [T, experts], got {probabilities.dtype}{list(probabilities.shape)}"
        )
    _check_integers(ids)
    if ids.dim() != 2 or ids.shape[0] != probabilities.shape[0]:
        raise ValueError(f"ids must have shape [{probabilities.shape[0]}, j], got {list(ids.shape)}")
    experts, chosen = probabilities.shape[1], ids >= 0
    _check_below(ids, experts)
    # Counted in integers: a sum of ones in a half type ends at 256 or 2048.
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)  # the last stands for nowhere
    place = torch.where(chosen, ids.to(torch.int64), experts).reshape(-1)
    counts = counts.index_add(0, place, torch.ones_like(place))[:-1]
    tokens = chosen.any(1)
    wide = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    mean = torch.where(tokens.unsqueeze(1), wide, 0).sum(0) / tokens.sum().clamp(min=1)
    return experts * (counts.to(mean.dtype) / counts.sum().clamp(min=1) * mean).sum()


def _check_integers(ids: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be an integer tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")


def _check_below(ids: Tensor, experts: int) -> None:
    require(
        (ids.to(torch.int64) < experts).all(),  # the number of experts need not fit the dtype of the ids
        lambda: f"ids must be below experts={experts}, got {int(ids.max())}",
        f"ids must be below {sized('experts', experts)}",
    )

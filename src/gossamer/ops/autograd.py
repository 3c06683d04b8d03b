"""What the autograd functions of all families share: when they are needed, what they refuse, what they may save."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.ops.transforms import check_transforms

# Does somebody compare what autograd saves? Checkpointing does, when it runs a layer again.
saving_is_watched = partial(torch._C._autograd._top_saved_tensors_default_hooks, True)


class Differentiable(torch.autograd.Function):
    """A function of tensors: `compute` without autograd, `forward` that also saves, and `backward`.

    forward(ctx, ...) rather than setup_context: torch binds the latter's arguments by signature at every call, which
    costs 24 us of the 30 us that the boundary then takes. The price is that transforms of torch.func are refused.

    Attributes:
        name: of the public function, for errors.
        operands: positions of the arguments that may ask for a gradient.
        call: the function: through autograd where an operand asks for a gradient, refused where one is transformed.
            Used in backward too, so that gradients of any order exist and a batch of gradients is refused.
    """

    name: ClassVar[str]
    operands: ClassVar[tuple[int, ...]] = (0, 1)
    compute: ClassVar[Callable[..., Any]]
    call: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        name, places = f"gossamer.ops.{cls.name}", cls.operands  # torch.compile reads no attribute of such a class

        def call(*args: Any) -> Any:
            operands = [args[at] for at in places]
            check_transforms(name, *operands)
            return cls.apply(*args) if wants_gradient(*operands) else cls.compute(*args)

        cls.call = staticmethod(call)


def wants_gradient(*operands: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for x in operands:
            if x is not None and x.requires_grad:
                return True
    return False


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for backward, of what was made under inference_mode a copy: an index made there serves training too."""
    if not torch.compiler.is_compiling():
        tensors = tuple(x.clone() if x is not None and x.is_inference() else x for x in tensors)
    ctx.save_for_backward(*tensors)

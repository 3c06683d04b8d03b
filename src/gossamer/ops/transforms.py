"""What kernels would get wrong, and ops therefore refuse: torch.func, vmap, forward-mode derivatives (jvp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from gossamer.ops.mutation import tensors_of


def check_transforms(name: str, *tensors: Tensor | None) -> None:
    """Refuse what kernels would get wrong: tensors that stand for others (torch.func, vmap), and dual numbers."""
    if torch.compiler.is_compiling():
        return
    if _functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0 and not _is_batch(tensors):
        return  # as nearly always, in a third of the time
    transform = _transform()
    check_tangents(name, tensors, known=transform == _functorch.TransformType.Jvp)
    if transform is not None or _is_batch(tensors):
        raise RuntimeError(
            f"{name} cannot be transformed by torch.func (vmap, grad, jacrev, ...) nor differentiated for a batch of "
            "gradients at once (is_grads_batched, vectorize=True): use torch.autograd, one gradient at a time"
        )


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether `check_transforms` would refuse: for what can leave the work to torch's own operators."""
    if torch.compiler.is_compiling():
        return False
    return _transform() is not None or _is_batch(tensors) or _has_tangent(tensors)


def _transform() -> Any:
    top = _functorch.peek_interpreter_stack()
    transform: Any = None if top is None else top.key()
    # Functionalization only records ops, and these can be recorded.
    return None if transform == _functorch.TransformType.Functionalize else transform


def _is_batch(args: tuple[Any, ...]) -> bool:
    for arg in args:  # noqa: SIM110 - a generator takes twice as long
        if isinstance(arg, Tensor) and _functorch.is_legacy_batchedtensor(arg):
            return True
    return False


def _has_tangent(args: tuple[Any, ...]) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for arg in args for x in tensors_of(arg))


def check_tangents(name: str, args: tuple[Any, ...], known: bool = False) -> None:
    """Refuse dual numbers: a kernel would drop the tangent, and a derivative of zero is a wrong number."""
    if known or _has_tangent(args):
        raise RuntimeError(f"{name} has no forward-mode derivative (jvp): differentiate backward")

"""What every builder checks, and what happens when more tiles arrive than the index has room for.

Checks on Python numbers and dtypes are always made. A check on the *contents* of a tensor must not make the host
wait for an accelerator, so it has two forms: on the CPU an exception that quotes the value, on an accelerator (and
inside `torch.compile`) an assertion queued on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Overflow = Literal["error", "dense", "grow"]


def check_pair(name: str, pair: tuple[int, int], smallest: int) -> tuple[int, int]:
    """Return `pair` as a tuple of two ints, each at least `smallest`."""
    try:
        first, second = pair
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of ints, got {pair!r}") from None
    for number in (first, second):
        if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
            raise TypeError(f"{name} must be a pair of ints, got {pair!r}")
        if number < smallest:
            raise ValueError(f"{name} must be a pair of ints of at least {smallest}, got {pair!r}")
    return first, second


def check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def check_matrix(name: str, x: Tensor) -> None:
    """Refuse anything that is not a strided tensor of two dimensions."""
    check_tensor(name, x)
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a strided (dense) tensor, got layout {x.layout}")
    if x.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions [rows, cols], got shape {tuple(x.shape)}")


def check_mask(name: str, mask: Tensor, advice: str = "") -> None:
    """Refuse anything that is not a strided bool tensor of two dimensions."""
    check_matrix(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be torch.bool, got {mask.dtype}{advice}")


def check_capacity(capacity: int | None) -> None:
    if capacity is None:
        return
    if isinstance(capacity, bool) or not isinstance(capacity, (int, torch.SymInt)):
        raise TypeError(f"capacity must be an int or None, got {capacity!r}")
    if capacity < 0:
        raise ValueError(f"capacity must be at least 0, got {capacity}")


def check_overflow(overflow: str) -> None:
    if overflow not in ("error", "dense", "grow"):
        raise ValueError(f"overflow must be 'error', 'dense' or 'grow', got {overflow!r}")


def is_recording() -> bool:
    """Is a graph being made, of tensors that hold nothing to look at?"""
    fake = torch._C._TorchDispatchModeKey.FAKE
    return torch.compiler.is_compiling() or torch._C._get_dispatch_mode(fake) is not None


def is_open(size: int) -> bool:
    """Does the graph that is being made leave this size open? To compare it with a number would close it."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(size)


def sized(name: str, size: int) -> str:
    """`name=size` for the rule of `require`; a size that a graph leaves open would be closed by a text that has it."""
    return name if is_open(size) else f"{name}={size}"


def require(condition: Tensor, message: Callable[[], str], rule: str, error: type[Exception] = ValueError) -> None:
    """Demand that a one-element boolean tensor is true without making the host wait for an accelerator.

    `message()` is only built on the CPU, where it may quote values; `rule` is what a device-side assertion prints.
    """
    if is_recording() or condition.device.type not in ("cpu", "meta"):
        torch._assert_async(condition, rule)
    elif condition.device.type == "cpu" and not bool(condition):
        raise error(message())


def room_for(count: Tensor, capacity: int | None, overflow: Overflow, every_tile: int) -> tuple[int, bool]:
    """Decide how many index entries to allocate for `count` tiles.

    Returns:
        The capacity, and whether the pattern must become dense (every tile present).

    `capacity=None` asks for exactly the tiles present and `overflow="dense" | "grow"` needs to know whether they fit:
    both read `count` on the host. `overflow="error"` does not.
    """
    check_capacity(capacity)
    check_overflow(overflow)
    if capacity is not None and capacity >= every_tile:
        return capacity, False
    if capacity is not None and overflow == "error":
        require(
            count <= capacity,
            lambda: f"capacity={capacity} is too small: {int(count)} tiles are present (overflow='error')",
            f"{sized('capacity', capacity)} is too small for the tiles present (overflow='error')",
            RuntimeError,
        )
        return capacity, False
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"capacity={capacity}, overflow={overflow!r} must read the number of tiles on the host, which "
            "torch.compile cannot do: give a capacity with overflow='error', or build the pattern outside"
        )
    present = int(count)
    if capacity is None:
        return present, False
    if present <= capacity:
        return capacity, False
    if overflow == "dense":
        return every_tile, True
    # At least double, so that a count creeping upwards reallocates a logarithmic number of times.
    return min(every_tile, max(present, 2 * capacity)), False

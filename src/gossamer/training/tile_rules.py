"""What a run may ask of layers that have memory for their tiles only, which come and go whole."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.parallel import DistributedDataParallel

from gossamer.training.state import State
from gossamer.training.tiles import TileLayer


def prepare(state: State, needs_dense: str, others: Sequence[str]) -> None:
    """Tell the layers of tiles where they run.

    Args:
        needs_dense: why the method of this run cannot rewire tiles; empty: it can.
        others: names of the methods that can.

    Raises:
        TypeError, ValueError: a method or an argument that has no meaning for tiles.
    """
    layers = [layer for layer in state.layers if isinstance(layer, TileLayer)]
    if not layers:
        return
    names = [layer.name for layer in layers]
    if needs_dense:
        raise TypeError(
            f"{type(state).__name__} {needs_dense}, so it needs dense weights, and {names} of "
            f"{_kinds(layers)} exist only in their tiles: exclude={names} leaves them alone, "
            f"and these methods move tiles: {', '.join(others)}"
        )
    if state.grad_window != 1:
        raise ValueError(f"grad_window must be 1 for the tiles of {names}, got {state.grad_window}")
    if state.grow_init != "zeros":
        raise ValueError(f"grow_init must be 'zeros' for the tiles of {names}, got {state.grow_init!r}")
    for layer in layers:
        layer.tensor.reduce = state.is_distributed()
    if any(isinstance(module, DistributedDataParallel) for module in state.model.modules()):
        fix(state)


def fix(state: State) -> None:
    """Let the layers of tiles keep the shapes that they have."""
    for layer in state.layers:
        if isinstance(layer, TileLayer):
            layer.tensor.fixed = True


def _kinds(layers: Sequence[TileLayer]) -> str:
    return " and ".join(dict.fromkeys(type(layer.tensor.module).__name__ for layer in layers))

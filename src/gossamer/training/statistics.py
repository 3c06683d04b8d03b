"""Numbers of a run for a report."""

from __future__ import annotations

from typing import Any

from gossamer.training.state import State


def summary(state: State) -> dict[str, Any]:
    """See `Method.stats`."""
    layers: dict[str, dict[str, Any]] = {}
    for name, mask in state.masks.items():
        tensor, size = state.tensors[name], state.sizes[name]
        nnz, ever = tensor.weights(mask), state.ever_active.count(tensor)
        layers[name] = {
            "nnz": nnz, "size": size, "density": nnz / size, "itop": ever / size, "churn": state.churn[name],
        }  # fmt: skip
    total = sum(state.sizes.values())
    nnz = sum(layer["nnz"] for layer in layers.values())
    return {
        "step": state.step,
        "first_mask": state.first_mask,
        "signs": list(state.signs),
        "nnz": nnz,
        "density": nnz / total,
        "itop": sum(layer["itop"] * layer["size"] for layer in layers.values()) / total,
        "layers": layers,
        "channels": {name: {"alive": int(a.sum()), "total": a.numel()} for name, a in state.channels().items()},
    }

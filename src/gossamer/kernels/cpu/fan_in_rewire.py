"""Rewiring rows of fixed fan-in, each for itself: the weakest connections go, others come."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.cpu import _call


def fan_in_rewire(
    values: Tensor, indices: Tensor, states: list[Tensor], ages: Tensor | None, candidates: Tensor | None,
    scores: Tensor | None, cols: int, group: int, drop: int, threshold: float, everywhere: bool, avoid_dropped: bool,
    min_age: int, init: float, seed: int, step: int, first: int,
) -> Tensor:  # fmt: skip
    """How many connections went: int64[]; see `gossamer.kernels.reference.fan_in_rewire`."""
    classifier = _call.classifier(values, indices, None, group, 1, cols)
    if len(states) > 2:
        raise ValueError(f"states must be at most two tensors, got {len(states)}")
    for state in states:
        _like("states", state, values, torch.float32)
    if ages is not None:
        _like("ages", ages, indices, torch.uint8)
    count = -1
    if candidates is not None:
        _call.tensor(candidates, "candidates", ndim=2, dtypes=(indices.dtype,))
        count = candidates.shape[1]
        if candidates.shape[0] != indices.shape[0]:
            raise ValueError(f"candidates must have {indices.shape[0]} rows, as indices, got {candidates.shape[0]}")
        if scores is None:
            raise ValueError("scores must come with candidates, got None")
        _like("scores", scores, candidates, torch.float32)
    elif scores is not None:
        raise ValueError("candidates must come with scores, got None")
    _check_cols(cols, indices.shape[1], indices.dtype)
    _call.count(first, "first")
    how = (
        drop, int(everywhere), int(avoid_dropped), _call.address(ages), min_age, _call.address(candidates),
        _call.address(scores), count, seed, step, first,
    )  # fmt: skip
    moved = [*states, None, None]
    parameters = (values.data_ptr(), indices.data_ptr(), 0, _call.address(moved[0]), _call.address(moved[1]), 0, 0)
    threads = torch.get_num_threads()
    workspace = torch.empty(
        _call.native.fan_in_rewire_workspace(classifier, how, threads), dtype=torch.uint8, device="cpu"
    )
    went = _call.native.fan_in_rewire(classifier, parameters, how, threshold, init, workspace.data_ptr(), threads)
    if went < 0:
        lists = {"indices": indices.to(torch.int64)}
        if candidates is not None:
            lists["candidates"] = candidates.to(torch.int64)
        _refuse(lists, cols)
    return torch.tensor(went, device="cpu")


def _refuse(lists: dict[str, Tensor], cols: int) -> None:
    for name, rows in lists.items():
        _call.check_bounds(name, "column", rows.reshape(-1), 0, cols)
        wrong = (rows[:, 1:] <= rows[:, :-1]).any(1).nonzero()
        if wrong.numel():
            at = int(wrong[0])
            raise ValueError(f"{name} must ascend in each row, got {rows[at].tolist()[:16]} in row {at}")
    both = torch.cat(list(lists.values()), 1).sort(1).values
    wrong = (both[:, 1:] == both[:, :-1]).any(1).nonzero()
    if wrong.numel():
        raise ValueError(f"candidates must not be connected already, got one that is in row {int(wrong[0])}")
    _call.refuse_changed(" and ".join(lists))


def _check_cols(cols: int, least: int, dtype: torch.dtype) -> None:
    most = torch.iinfo(dtype).max + 1
    if not least <= cols <= most:
        raise ValueError(f"cols must be at least {least}, the connections of a row, and at most {most}, got {cols}")


def _like(name: str, x: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    _call.tensor(x, name, ndim=2, dtypes=(dtype,))
    if x.shape != other.shape:
        raise ValueError(f"{name} must have shape {tuple(other.shape)}, got {tuple(x.shape)}")


def fan_in_draw(out: Tensor, indices: Tensor | None, cols: int, seed: int, step: int, first: int) -> None:
    """Draws connections for rows; see `gossamer.kernels.reference.fan_in_draw`."""
    _call.tensor(out, "out", ndim=2, dtypes=(torch.uint16, torch.int32))
    (rows, k), count = out.shape, 0
    if indices is not None:
        _call.tensor(indices, "indices", ndim=2, dtypes=(out.dtype,))
        count = indices.shape[1]
        if indices.shape[0] != rows:
            raise ValueError(f"indices must have {rows} rows, as out, got {indices.shape[0]}")
    _check_cols(cols, k + count, out.dtype)
    _call.count(first, "first")
    if not _call.native.fan_in_draw(
        out.data_ptr(), out.itemsize, rows, k, cols, _call.address(indices), count, seed, step, first,
        torch.get_num_threads(),
    ):  # fmt: skip
        assert indices is not None
        _refuse({"indices": indices.to(torch.int64)}, cols)

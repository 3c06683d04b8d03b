"""Take a checkpoint into a stage, after a look at each of its fields: one that cannot be so is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gossamer.cli.train.loop import Stage
from gossamer.training.fields import is_finite, is_whole

# What the optimizers of `recipe` keep of a parameter.
_STATE = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def restore(stage: Stage, saved: dict[str, Any], *, total: int) -> None:
    """Continue `stage`, which is before its first step, from `saved`.

    Args:
        stage: changed in place.
        saved: what `Stage.state` gave, of a file of any content.
        total: steps of the whole run.

    Raises:
        ValueError: a field is missing or holds what no run writes; `str` names it, its value, what was expected.
    """
    lacking = [name for name in stage.state() if name not in saved]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    _expect(saved["stage"] == stage.name, "stage", saved["stage"], repr(stage.name))
    _expect(is_whole(saved["step"]) and saved["step"] <= total, "step", saved["step"], f"a whole number to {total}")
    _expect(is_finite(saved["loss_sum"]), "loss_sum", saved["loss_sum"], "a finite number")
    _check_curve(saved["curve"])
    _check_snapshots(saved["snapshots"])
    if stage.method is None:
        _expect(saved["method"] is None, "method", saved["method"], "None for a dense network")
    else:
        try:
            stage.method.load_state_dict(saved["method"])
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"method: {error}") from error
        of_method = stage.method.step
        _expect(of_method == saved["step"], "method.step", of_method, f"{saved['step']}, the step of the network")
    # Only now has the network the sizes it had when it was saved: a method may have cut channels out.
    _check_model(stage.model, saved["model"])
    _check_optimizer(stage.optimizer, saved["optimizer"])
    stage.model.load_state_dict(saved["model"])
    stage.optimizer.load_state_dict(saved["optimizer"])
    stage.step, stage.loss_sum = saved["step"], saved["loss_sum"]
    stage.curve, stage.snapshots = saved["curve"], saved["snapshots"]


def _expect(right: bool, field: str, value: object, expected: str) -> None:
    if not right:
        raise ValueError(f"{field} is {_short(value)}; expected {expected}")


def _short(value: object) -> str:
    if isinstance(value, torch.Tensor):
        what = f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
        return f"{what}, {value.item()}" if value.numel() == 1 and not value.is_meta else what
    return " ".join(repr(value).split())[:80]


def _check_curve(curve: object) -> None:
    expected = "a list of points with step, epoch and accuracy, all of them finite numbers"
    _expect(isinstance(curve, list), "curve", curve, expected)
    for i, point in enumerate(curve):  # type: ignore[arg-type, var-annotated]
        fits = isinstance(point, dict) and {"step", "epoch", "accuracy"} <= point.keys()
        _expect(fits and all(is_finite(value) for value in point.values()), f"curve[{i}]", point, expected)


def _check_snapshots(snapshots: object) -> None:
    expected = "a list of steps with the density of each channel"
    _expect(isinstance(snapshots, list), "snapshots", snapshots, expected)
    for i, shot in enumerate(snapshots):  # type: ignore[arg-type, var-annotated]
        fits = isinstance(shot, dict) and is_whole(shot.get("step")) and isinstance(shot.get("density"), dict)
        fits = fits and all(
            isinstance(name, str) and isinstance(cells, list) and all(cell is None or is_finite(cell) for cell in cells)
            for name, cells in shot["density"].items()
        )
        _expect(fits, f"snapshots[{i}]", shot, expected)


def _check_model(model: torch.nn.Module, saved: object) -> None:
    here = model.state_dict()
    _expect(isinstance(saved, Mapping), "model", saved, "tensors by name")
    assert isinstance(saved, Mapping)
    odd = sorted(map(str, saved.keys() ^ here.keys()))
    if odd:
        raise ValueError(f"model: {', '.join(odd[:3])} are in the file or in the network only")
    for name, tensor in here.items():
        if isinstance(tensor, torch.Tensor):
            _check_tensor(saved[name], f"model.{name}", tensor.shape, tensor.dtype)


def _check_tensor(value: object, field: str, shape: torch.Size, dtype: torch.dtype) -> None:
    fits = isinstance(value, torch.Tensor) and value.layout == torch.strided
    fits = fits and (value.shape, value.dtype) == (shape, dtype)  # type: ignore[attr-defined]
    _expect(fits, field, value, _short(torch.empty(shape, dtype=dtype, device="meta")))


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: object) -> None:
    here = optimizer.state_dict()
    fits = isinstance(saved, dict) and isinstance(saved.get("state"), dict)
    fits = fits and isinstance(saved.get("param_groups"), list)  # type: ignore[attr-defined]
    _expect(fits, "optimizer", saved, "state and param_groups")
    assert isinstance(saved, dict)
    groups = saved["param_groups"]
    _expect(len(groups) == len(here["param_groups"]), "optimizer.param_groups", groups, "as many as in this run")
    for i, (group, mine) in enumerate(zip(groups, here["param_groups"], strict=True)):
        _expect(
            isinstance(group, dict) and group.keys() == mine.keys(), f"optimizer.param_groups[{i}]", group, "a group"
        )
        for key, value in mine.items():
            # The learning rate is set anew before each step; the other settings are those of the run.
            fits = is_finite(group[key]) if key == "lr" else repr(group[key]) == repr(value)
            _expect(fits, f"optimizer.param_groups[{i}].{key}", group[key], repr(value)[:80])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in saved["state"].items():
        field = f"optimizer.state[{index!r}]"
        _expect(
            is_whole(index) and index < len(parameters), field, entry, f"a parameter from 0 to {len(parameters) - 1}"
        )
        names = _STATE[type(optimizer)]
        _expect(isinstance(entry, dict) and entry.keys() == names, field, entry, ", ".join(sorted(names)))
        for name, value in entry.items():
            if name == "step":
                fits = isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.shape == ()
                _expect(fits and 0 <= float(value) < math.inf, f"{field}.step", value, "a count of steps")
            elif value is not None:
                _check_tensor(value, f"{field}.{name}", parameters[index].shape, parameters[index].dtype)

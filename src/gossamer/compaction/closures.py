"""Functions that a module keeps as attributes, made to hold the modules of its copy.

    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)      or torch.compile(model.forward)

`copy.deepcopy` takes functions as they are: the copy's forward would then run the original.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn


def rebind_(twin: nn.Module, model: nn.Module) -> None:
    """Let every callable attribute of `twin`, a deep copy of `model`, that reaches modules of `model` reach its own."""
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    own = {id(module): copy for module, copy in pairs}
    for module, copy in pairs:
        for name, value in vars(module).items():
            if name not in _MODULES and callable(value) and _reaches(value, own, set()):
                object.__setattr__(copy, name, _rebound(value, own, {}))


_MODULES = ("_parameters", "_buffers", "_modules")


def _held(value: Any) -> list[Any]:
    """What a callable calls or passes on: the cells of a function, the arguments of a partial, a method's object."""
    if isinstance(value, types.FunctionType):
        return [*_cells(value), *(value.__defaults__ or ()), *vars(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values(), *vars(value).values()]
    decorator = hasattr(value, "__wrapped__") and not isinstance(value, (nn.Module, type))
    return list(vars(value).values()) if decorator and hasattr(value, "__dict__") else []


def _cells(function: types.FunctionType) -> list[Any]:
    empty = types.CellType()
    return [cell.cell_contents for cell in function.__closure__ or () if cell != empty]


def _reaches(value: Any, own: dict[int, nn.Module], seen: set[int]) -> bool:
    if id(value) in own:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    return any(_reaches(part, own, seen) for part in _held(value))


def _rebound(value: Any, own: dict[int, nn.Module], done: dict[int, Any]) -> Any:
    """`value` with every module of `own` in it replaced by its copy; what holds none is shared."""
    if id(value) in own:
        return own[id(value)]
    if id(value) in done or not _reaches(value, own, set()):
        return done.get(id(value), value)

    def again(part: Any) -> Any:
        return _rebound(part, own, done)

    def attributes() -> dict[str, Any]:
        return {name: again(part) for name, part in vars(value).items()}

    made: Any
    if isinstance(value, types.FunctionType):
        made = done[id(value)] = _emptied(value)
        made.__defaults__ = None if value.__defaults__ is None else tuple(map(again, value.__defaults__))
        for cell, old in zip(made.__closure__ or (), value.__closure__ or (), strict=True):
            if old != types.CellType():
                cell.cell_contents = again(old.cell_contents)
    elif isinstance(value, types.MethodType):
        return types.MethodType(again(value.__func__), again(value.__self__))
    elif isinstance(value, functools.partial):
        keywords = {name: again(part) for name, part in value.keywords.items()}
        made = type(value)(again(value.func), *map(again, value.args), **keywords)
    else:  # a decorator that is an object, such as what Accelerate puts around a forward
        made = done[id(value)] = object.__new__(type(value))
    vars(made).update(attributes())
    return made


def _emptied(function: types.FunctionType) -> types.FunctionType:
    """The same code over cells of its own, which are empty yet."""
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    made.__kwdefaults__, made.__qualname__, made.__doc__ = (
        function.__kwdefaults__, function.__qualname__, function.__doc__,
    )  # fmt: skip
    return made

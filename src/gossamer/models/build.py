"""Turn a name, `module:factory` or `path/to/file.py:factory` into a network."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from gossamer.models.convnet import ConvNet
from gossamer.models.fixup import fixup_resnet50
from gossamer.models.mlp import MLP
from gossamer.models.resnet import resnet20, resnet34, resnet50
from gossamer.models.vgg import vgg16, vgg16_plain
from gossamer.models.vit import ViT
from gossamer.spelling import suggestion

_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "fixup_resnet50": fixup_resnet50,
    "vgg16": vgg16,
    "vgg16_plain": vgg16_plain,
    "vit": ViT,
}


def names() -> tuple[str, ...]:
    """The networks known by name.

    >>> import gossamer as gs
    >>> gs.models.names()
    ('mlp', 'convnet', 'resnet20', 'resnet34', 'resnet50', 'fixup_resnet50', 'vgg16', 'vgg16_plain', 'vit')
    """
    return tuple(_FACTORIES)


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Inside, what is installed nowhere is looked for in `folder` too: modules that lie beside a factory's."""
    entry = str(folder)
    sys.path.append(entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the last one: ours
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(entry)]


def _folder(place: str) -> Path:
    """Where a factory's module is looked for: the folder of the file, or the current one."""
    return Path(place).expanduser().resolve().parent if place.endswith(".py") else Path.cwd()


def _import(place: str) -> ModuleType:
    """Import a dotted module name, or run the file that a path ending in .py names; `_beside` its folder."""
    if not place.endswith(".py"):
        _refuse_two(place.partition(".")[0], _folder(place))
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"gossamer_model_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:  # like any import: two networks from one file are of the same class
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses inside the file look their own module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _refuse_two(name: str, folder: Path) -> None:
    """Raise ValueError when `name` is a module of this folder and another one that is installed or imported.

    Either could be meant, and the one of the folder must not take the other's place for the rest of the process.
    """
    here = PathFinder.find_spec(name, [str(folder)])
    if here is None or here.origin is None:  # a bare folder is no package that anyone would call a factory of
        return
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    other = loaded or importlib.util.find_spec(name)
    if other is not None and other.origin != here.origin:
        raise ValueError(
            f"{name} is {here.origin}, and another module of that name is {other.origin or 'a folder'}; "
            f"rename the file, or write {Path(here.origin).name}:factory"
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _arguments(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """The part of `offered` that `factory` has parameters for, `num_classes` for classes too; all, if `**kwargs`."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a factory written in C has no signature to read
        return {}
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if "num_classes" in known and "classes" not in known:
        offered = {**offered, "num_classes": offered["classes"]}
        del offered["classes"]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return {name: value for name, value in offered.items() if name in known}


_REFUSED = re.compile(r"unexpected keyword argument '(input_shape|classes|num_classes)'")


def _made(factory: Callable[..., Any], arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """What the factory returns. What it passes on by `**kwargs` is offered, and taken back where nobody knows it.

    torchvision's networks take their sizes so, and call the classes `num_classes`.
    """
    while True:
        try:
            return factory(**arguments, **options)
        except TypeError as error:
            refused = _REFUSED.search(str(error))
            if refused is None or refused[1] not in arguments:
                raise
            value = arguments.pop(refused[1])
            if refused[1] == "classes":
                arguments["num_classes"] = value


def build(model: str, input_shape: Sequence[int], classes: int, **options: Any) -> nn.Module:
    """Build a network.

    Args:
        model: a name from `names()`, `module:factory`, or `path/to/file.py:factory`. A factory is any callable that
            returns an `nn.Module`; `input_shape` and `classes` (or `num_classes`) are passed to it where it has
            parameters of that name, or takes them by `**kwargs`.
            A module may lie in the current folder, which is searched while it is imported and built, and at no other
            time; a name that is also that of an installed module is refused.
        input_shape: shape of one example, (channels, height, width) for images.
        classes: number of outputs.
        options: further arguments of the factory, for example `widths=(32, 64)` for "mlp" and "convnet".

    Raises:
        ValueError: an unknown name, a module that does not import, a factory that fails, an input_shape it cannot use.
        TypeError: the factory does not return a module.

    >>> import gossamer as gs
    >>> net = gs.models.build("mlp", input_shape=(1, 8, 8), classes=10, widths=(32,))
    >>> net.classifier
    Linear(in_features=32, out_features=10, bias=True)
    """
    shape = tuple(int(size) for size in input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape is {shape}; expected positive sizes such as (3, 32, 32)")
    if classes < 1:
        raise ValueError(f"classes is {classes}; expected at least 1")
    place, colon, attribute = model.rpartition(":")
    if model in _FACTORIES:
        factory = _FACTORIES[model]
        if len(shape) != 3 and model != "mlp":
            raise ValueError(f"input_shape is {shape}; {model} expects (channels, height, width), mlp takes any")
        arguments = {"input_shape": shape, "classes": classes}
    elif colon and place and attribute:
        try:
            with _beside(_folder(place)):
                module = _import(place)
        except Exception as error:
            raise ValueError(f"model is {model!r}, but importing {place} failed: {_said(error)}") from error
        if not hasattr(module, attribute):
            raise ValueError(f"model is {model!r}, but {place} has no {attribute!r}")
        factory = getattr(module, attribute)
        if not callable(factory):
            raise ValueError(f"model is {model!r}, but {attribute!r} is a {type(factory).__name__}, not callable")
        if isinstance(factory, nn.Module):
            raise ValueError(
                f"model is {model!r}, which is a {type(factory).__name__}, a network already; expected a function or "
                "class that makes a new one at each call"
            )
        arguments = _arguments(factory, {"input_shape": shape, "classes": classes})
        arguments = {name: value for name, value in arguments.items() if name not in options}
    else:
        meant = f"; did you mean {model}:FACTORY?" if model.endswith(".py") else suggestion(model, _FACTORIES)
        raise ValueError(
            f"model is {model!r}; expected one of {', '.join(_FACTORIES)}, module:factory or path/to/file.py:factory"
            f"{meant}"
        )
    try:
        with _beside(_folder(place)) if colon else nullcontext():
            network = _made(factory, arguments, options)
    except Exception as error:
        given = {**arguments, **options}
        raise ValueError(f"model {model!r} could not be built from {given}: {_said(error)}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"model {model!r} returned a {type(network).__name__}; expected a torch.nn.Module")
    return network

"""Modules whose class is changed, and can be given back: parameters, names and attributes stay where they are."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.compile.finding import Finding
from gossamer.nn.traced import leaves_process
from gossamer.ops.transforms import is_transformed
from gossamer.pattern.check import is_recording

Classes = list[tuple[nn.Module, type[nn.Module]]]
"""Modules, each with the class that it had, or is to have."""


class Changed:
    """Mixed into the class of a module, which `loop` then is."""

    loop: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds the module as it was written: its class can be imported, this one cannot."""
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return object.__new__, (self.loop,), state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


def changed_class(mixin: type[Changed], cls: type[nn.Module], **scope: Any) -> type[nn.Module]:
    """A subclass of both, under the name of the latter."""
    names = {"loop": cls, "__module__": cls.__module__, "__doc__": cls.__doc__, **scope}
    return type(cls.__name__, (mixin, cls), names)


def may_look(*tensors: Any) -> bool:
    """Whether what tensors hold may decide what is computed: not in a graph, nor for tensors that stand for others."""
    found = [x for x in tensors if isinstance(x, Tensor)]
    if is_recording() or leaves_process() or is_transformed(*found):
        return False
    return not any(x.is_meta for x in found) and not any(torch.is_autocast_enabled(x.device.type) for x in found)


def become(classes: Iterable[tuple[nn.Module, type[nn.Module]]]) -> None:
    for module, cls in classes:
        module.__class__ = cls


@dataclass
class Changes:
    """What became of the modules of a model.

    Attributes:
        findings: one for each place, with what was changed or the reason why nothing was.
    """

    findings: tuple[Finding, ...]
    changed: Classes = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Give every module its own class back."""
        become(self.changed)
        self.changed.clear()

    def __str__(self) -> str:
        return "\n".join(f"{each.node or 'the model'}: {each.choice}. {each.why}" for each in self.findings)

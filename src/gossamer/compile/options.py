"""`torch.compile(model, backend="gossamer", options={...})`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

PASSES = ("padding", "activations", "masks")


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        min_padding: share of a batch that must be padding for a call to leave it out, 0 to 1.
        passes: what to look for; all of `PASSES` by default.
        keep_packed: lets products that may skip zeros keep a copy of their weights in the order they like, until torch
            counts a change of them. A write through `weight.data` or numpy is then not seen.
        inductor: options for inductor, which compiles everything else.
    """

    min_padding: float = 0.1
    passes: tuple[str, ...] = PASSES
    keep_packed: bool = False
    inductor: Mapping[str, Any] | None = None


def options_of(given: Mapping[str, Any] | None, mode: str | None = None) -> Options:
    """
    Raises:
        ValueError, TypeError: an unknown key (with the nearest known one), or a value of another kind.

    >>> options_of({"min_padding": 0.25}).min_padding
    0.25
    """
    given = dict(given or {})
    known = [each.name for each in fields(Options)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"options has no {name!r}; expected some of {known}{hint}")
    share = given.get("min_padding", 0.1)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"options['min_padding'] must be a number from 0 to 1, got {share!r}")
    passes = given.get("passes", PASSES)
    if isinstance(passes, str) or any(each not in PASSES for each in passes):
        raise ValueError(f"options['passes'] must be some of {PASSES}, got {passes!r}")
    keep_packed = given.get("keep_packed", False)
    if not isinstance(keep_packed, bool):
        raise TypeError(f"options['keep_packed'] must be True or False, got {keep_packed!r}")
    inductor = dict(_of_mode(mode))
    more = given.get("inductor")
    if more is not None:
        if not isinstance(more, Mapping):
            raise TypeError(f"options['inductor'] must be a mapping of inductor's options, got {more!r}")
        inductor.update(more)
    return Options(float(share), tuple(passes), keep_packed, _checked(inductor) or None)


def _of_mode(mode: str | None) -> Mapping[str, Any]:
    if mode is None or mode == "default":
        return {}
    from torch._inductor import list_mode_options

    try:
        of_mode: Mapping[str, Any] = list_mode_options(mode)
    except RuntimeError:
        raise ValueError(f"mode must be one of those of torch.compile, got {mode!r}") from None
    return of_mode


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if not options:
        return options
    from torch._inductor import config

    known = config.get_config_copy()
    for name in options:
        if name.replace("-", "_") not in known:
            raise ValueError(f"options['inductor'] has no {name!r}: it is no option of torch._inductor.config")
    return {name.replace("-", "_"): value for name, value in options.items()}

"""Thresholds written into the config of a model of transformers, which travels with it as config.json.

    config.quantization_config = {"quant_method": "gossamer_thresholds", "layers": {name: {"threshold": 0.12, ...}}}

That entry is the one which transformers reads when it loads: where gossamer was imported it puts the thresholds back
(`from_pretrained`), elsewhere transformers warns that it does not know the method, and loads the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

METHOD = "gossamer_thresholds"


def entries_of(model: nn.Module) -> dict[str, dict[str, Any]] | None:
    """What a model's config says of its thresholds: name -> {threshold, prefill, reorder, gated}; None if nothing."""
    found = getattr(getattr(model, "config", None), "quantization_config", None)
    found = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
    return dict(found["layers"]) if found.get("quant_method") == METHOD else None


def why_not_saved(model: nn.Module) -> str | None:
    """Why `model.save_pretrained` will not save thresholds; None where it will, or where there is no such method."""
    if not _has_config(model):
        return None
    present = getattr(getattr(model, "config", None), "quantization_config", None)
    if present is None or entries_of(model) is not None:
        return None
    return (
        "save_pretrained will not save these thresholds: config.quantization_config is taken by another method; keep "
        "report.thresholds and give them to gs.nn.apply_thresholds"
    )


def write(model: nn.Module, entries: Mapping[str, dict[str, Any]]) -> Callable[[], None]:
    """Add entries to the config, if there is one that is free; return what takes them out again.

    The dicts themselves are kept, so that what is written into them later is saved too.
    """
    if not _has_config(model) or why_not_saved(model) is not None:
        return lambda: None
    config: Any = model.config
    before = getattr(config, "quantization_config", None)
    config.quantization_config = {"quant_method": METHOD, "layers": {**(entries_of(model) or {}), **entries}}

    def undo() -> None:
        if before is None:
            del config.quantization_config
        else:
            config.quantization_config = before

    return undo


def erase(model: nn.Module) -> None:
    """Take all entries out of the config."""
    if entries_of(model) is not None:
        config: Any = model.config
        del config.quantization_config


def place_of(model: nn.Module, name: str) -> str | None:
    """The name in this model, with a head or without, of what had `name` in the one that was saved; None if none."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules = dict(model.named_modules())
    return next((each for each in (name, prefix + name, name.removeprefix(prefix)) if each in modules), None)


def _has_config(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return callable(getattr(model, "save_pretrained", None)) and callable(getattr(config, "to_json_string", None))

"""A conversation in the words of a model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer.extras import needed


def conversation(tokenizer: Any, turns: Sequence[dict[str, Any]], **more: Any) -> list[int]:
    """The tokens of a conversation, up to where the model's answer begins.

    Args:
        more: what else the template may read, such as `tools`.

    Raises:
        ValueError: the template refuses the turns, or is faulty; its own sentence is told.
    """
    jinja2: Any = needed("jinja2", "chat templates need jinja2", "serving")
    try:
        encoded = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=True, **more)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # templates are programs of their own, with any error that a program can have
        said = " ".join(str(error).split()) or type(error).__name__
        if type(error) is jinja2.TemplateError:  # by the template's own raise_exception
            raise ValueError(f"the model's chat template refuses the messages: {said}") from error
        line = getattr(error, "lineno", None)
        place = "" if line is None or f"line {line}" in said else f", line {line}"
        raise ValueError(f"the model's chat template fails{place} ({type(error).__name__}): {said}") from error
    return list(encoded["input_ids"])

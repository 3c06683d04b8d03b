"""Docstrings as the site shows them: examples as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

BEYOND = re.compile(r"^( *)Args \((.+)\):$", re.MULTILINE)
EXAMPLE = re.compile(r"^([ ]*)>>> (?:.*\n?)(?:[ ]*\S.*\n?)*", re.MULTILINE)


class Docstrings(Extension):
    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(docstring: str) -> str:
    """The docstring with its doctests fenced, and every list of arguments headed as such.

    >>> shown("A sum.\\n\\n>>> 1 + 1\\n2\\n").splitlines()
    ['A sum.', '', '```pycon', '>>> 1 + 1', '2', '```']
    >>> shown("Args (beyond `Settings`):").splitlines()
    ['Arguments beyond `Settings`:', '', 'Args:']
    """

    def fenced(match: re.Match[str]) -> str:
        indent, text = match[1], match[0].rstrip("\n")
        return f"{indent}```pycon\n{text}\n{indent}```\n"

    return EXAMPLE.sub(fenced, BEYOND.sub(r"\1Arguments \2:\n\n\1Args:", docstring))

"""HTML and SVG elements whose text is escaped unless it is itself an element."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


Child = Union[str, int, float, None, Iterable["Child"]]  # noqa: UP007  (a recursive alias needs the quoted form)

_VOID = frozenset(("br", "circle", "input", "line", "link", "meta", "path", "polyline", "rect"))


def text(child: Child) -> str:
    """The HTML of one child; a list is the HTML of its items, None is nothing."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (str, int, float)):
        return html.escape(str(child))
    return "".join(text(item) for item in child)


def tag(name: str, *children: Child, **attributes: str | int | float | None) -> Markup:
    """An element. `class_` and `data_step` become `class` and `data-step`; attributes that are None are left out.

    >>> from gossamer.report.markup import tag
    >>> tag("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{pairs}/>")
    return Markup(f"<{name}{pairs}>{text(children)}</{name}>")

"""The frame of a page: one HTML document with our style, without outside resources."""

from __future__ import annotations

import re
from importlib.resources import files

from gossamer.report.markup import Markup, tag

_LONG = 48  # letters; about two lines of a phone


def heading(title: str) -> Markup:
    """The title of a page; a long one is set smaller, and a path breaks behind its marks."""
    parts = [[part, Markup("<wbr>")] for part in re.split(r"(?<=[./:_-])", title)]
    return tag("h1", parts, class_="long" if len(title) > _LONG else None)


def document(title: str, body: Markup, *, script: str | None = None) -> str:
    """The whole document around `body`, a <main>; `script` is JavaScript."""
    css = files("gossamer.report").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Markup(css)),
    )
    content = tag("body", body, None if script is None else tag("script", Markup(script)))
    return Markup("<!doctype html>\n" + tag("html", head, content, lang="en") + "\n")

"""The frame of a page: one HTML document with our style, without outside resources."""

from __future__ import annotations

from importlib.resources import files

from gossamer.report.markup import Markup, tag


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

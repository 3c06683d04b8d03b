"""What a misspelt name was meant to be. May import nothing of gossamer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" with the known name that is spelled most alike, or nothing.

    >>> suggestion("trian", ("train", "tune"))
    '; did you mean train?'
    >>> suggestion("mnist", ("train", "tune"))
    ''
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.7)
    begun = [name for name in names if len(word) > 2 and name.startswith(word.lower())]
    found = near[:1] or begun[:1]
    return f"; did you mean {names[found[0]]}?" if found else ""

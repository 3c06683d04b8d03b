"""Encoders: texts or features -> one vector an example, trained together with the head.

bow           hashed words, tf-idf, a trained embedding: no download
transformer   a Hugging Face encoder from a folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer.xmc.encoders.encoder import Encoder, Inputs

__all__ = ["Encoder", "Inputs", "make", "restore"]


def make(name: str | Path, *, given: int | None = None, **settings: Any) -> Encoder:
    """The encoder of a name: "bow", "minilm", or a folder of Hugging Face's.

    Args:
        given: width of the features that the data set brings; None where it brings texts.
        settings: of the encoder's class.

    Raises:
        ValueError: features for an encoder that reads texts. FileNotFoundError: no such name and no such folder.
    """
    if str(name) == "bow":
        from gossamer.xmc.encoders.bow import Bow

        return Bow(**settings) if given is None else Bow(**{**settings, "features": given, "given": True})
    if given is not None:
        raise ValueError(f"encoder {str(name)!r} reads texts, and the data set has features only; expected 'bow'")
    from gossamer.xmc.encoders.transformer import Transformer

    return Transformer(name, **settings)


def restore(folder: Path, kind: str, settings: dict[str, Any]) -> Encoder:
    """The encoder that was saved in `folder`.

    Raises:
        ValueError: an unknown kind, or settings and weights that do not fit.
    """
    from gossamer.xmc.encoders.bow import Bow
    from gossamer.xmc.encoders.transformer import Transformer

    for known in (Bow, Transformer):
        if known.kind == kind:
            return known.restore(folder, settings)
    raise ValueError(f"encoder kind is {kind!r}; expected {Bow.kind!r} or {Transformer.kind!r}")

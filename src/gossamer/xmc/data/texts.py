"""A sequence of texts as one array of bytes and the places between them: three million texts are two objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Texts(Sequence[str]):
    """Text `i` is `content[offsets[i]:offsets[i + 1]]` in UTF-8.

    Attributes:
        content: uint8[bytes].
        offsets: int64[texts + 1].

    >>> from gossamer.xmc.data import Texts
    >>> texts = Texts.of(["one", "", "drei Körbe"])
    >>> len(texts), texts[2], list(texts[:2])
    (3, 'drei Körbe', ['one', ''])
    """

    content: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """From strings; what UTF-8 cannot write (half a surrogate pair) becomes a question mark."""
        return cls.of_bytes(text.encode("utf-8", "replace") for text in texts)

    @classmethod
    def of_bytes(cls, texts: Iterable[bytes]) -> Texts:
        """From bytes that are UTF-8."""
        content, ends = bytearray(), [0]
        for text in texts:
            content += text
            ends.append(len(content))
        return cls(np.frombuffer(content, np.uint8), np.array(ends, np.int64))

    def validate(self) -> Texts:
        """Raise ValueError unless the offsets cut the content into whole UTF-8 texts; returns itself."""
        content, offsets = self.content, self.offsets
        if content.dtype != np.uint8 or offsets.dtype != np.int64 or content.ndim != 1 or offsets.ndim != 1:
            raise ValueError(f"texts are {content.dtype} and {offsets.dtype}; expected uint8 and int64, one dimension")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(content) or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(f"the offsets of texts do not rise from 0 to {len(content)}")
        cuts = offsets[offsets < len(content)]
        if ((content[cuts] & 0xC0) == 0x80).any():
            raise ValueError("the offsets of texts cut a letter")
        str(content.data, "utf-8") if len(content) else None
        return self

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> Texts: ...
    def __getitem__(self, which: int | slice) -> str | Texts:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step != 1:
                return Texts.of_bytes(self._bytes(i) for i in range(start, stop, step))
            offsets = self.offsets[start : max(start, stop) + 1]
            return Texts(self.content[offsets[0] : offsets[-1]], offsets - offsets[0])
        if not -len(self) <= which < len(self):
            raise IndexError(f"text {which} of {len(self)}")
        return self._bytes(which % len(self)).decode()

    def _bytes(self, which: int) -> bytes:
        return self.content[self.offsets[which] : self.offsets[which + 1]].tobytes()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Texts({len(self)} texts, {len(self.content)} bytes)"

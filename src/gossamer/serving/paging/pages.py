"""Who has which page: free ones, owned ones, and ones that several requests share until one of them writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class OutOfPages(RuntimeError):
    """No page is free; nothing was taken."""


class Pages:
    """The pages [0, count) of a memory.

    >>> pages = Pages(3)
    >>> first = pages.take(2)
    >>> pages.share(first)
    >>> pages.release(first), pages.free
    (None, 1)
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._owners = [0] * count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many pages, each with one owner.

        Raises:
            OutOfPages: fewer are free.
        """
        if count > len(self._free):
            raise OutOfPages(f"{count} pages are needed and {len(self._free)} of {self.count} are free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each."""
        for page in self._owned(pages):
            self._owners[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One owner less; a page that nobody owns is free.

        Raises:
            ValueError: a page that nobody owns; nothing is released then.
        """
        for page in self._owned(pages):
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)

    def shared(self, page: int) -> bool:
        """Whether it has several owners, none of whom may write."""
        return self._owners[page] > 1

    def grow(self, count: int) -> None:
        """Have `count` pages in all."""
        self._free[:0] = range(count - 1, self.count - 1, -1)
        self._owners.extend([0] * (count - self.count))
        self.count = count

    def _owned(self, pages: Iterable[int]) -> list[int]:
        pages = list(pages)
        for page, times in Counter(pages).items():
            if not 0 <= page < self.count or times > self._owners[page]:
                raise ValueError(f"page {page} of {self.count} is not owned, or less often than it is released")
        return pages

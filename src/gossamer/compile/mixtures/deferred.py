"""Experts that all get all rows, and whose results are masked: what an expert gives waits until its mask is known.

    y = y + mask[:, e:e+1] * expert(x)

    expert(x)       Deferred(expert, x)           nothing is computed
    mask * that     Deferred(expert, x, mask)
    y + that        Sum(y, that)                  until anything else is done with it: then each expert runs the rows
                                                  that its mask keeps
Whatever else is done with a `Deferred`, it becomes the tensor that it stands for: any code that computes with tensors
computes the same with these. A mask of zero leaves a row out, where a product makes NaN of an infinite result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_T = torch.Tensor
_MULTIPLY = {torch.mul, torch.multiply, _T.mul, _T.multiply, _T.__mul__, _T.__rmul__}
_ADD = {torch.add, _T.add, _T.__add__, _T.__radd__}
_ADD_HERE = {_T.add_, _T.__iadd__}
Run = Callable[[Tensor], Tensor]

_running = local()


@contextmanager
def deferring(experts: frozenset[int]) -> Iterator[None]:
    """Inside, these experts (by id) give what waits; in this thread."""
    before: frozenset[int] = getattr(_running, "experts", frozenset())
    _running.experts = experts
    try:
        yield
    finally:
        _running.experts = before


def is_deferring(expert: object) -> bool:
    return id(expert) in getattr(_running, "experts", ())


class Waiting:
    """What stands for a tensor. Every use but those that `of` knows makes the tensor."""

    def value(self) -> Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and len(args) == 2:
            found = _of(func, *args)
            if found is not None:
                return found
        return func(*settled(args), **settled(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value(), name)

    def __getitem__(self, at: Any) -> Any:
        return self.value()[at]

    def __len__(self) -> int:
        return len(self.value())

    def __mul__(self, other: Any) -> Any:
        return self.__torch_function__(torch.mul, (), (self, other))

    def __add__(self, other: Any) -> Any:
        return self.__torch_function__(torch.add, (), (self, other))

    __rmul__, __radd__ = __mul__, __add__


def _usual(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)
    return lambda self, *others: function(self.value(), *settled(others))


for _name in ("sub", "truediv", "matmul", "neg", "pow", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Waiting, f"__{_name}__", _usual(_name))
Waiting.__rsub__ = lambda self, other: other - self.value()  # type: ignore[attr-defined]
Waiting.__rtruediv__ = lambda self, other: other / self.value()  # type: ignore[attr-defined]


class Deferred(Waiting):
    """run(x), and times mask[..., 1] if there is one."""

    def __init__(self, run: Run, x: Tensor, mask: Tensor | None = None, seen: int | None = None) -> None:
        self.run, self.x, self.mask = run, x, mask
        self.seen = (_version(x) if seen is None else seen), _version(mask)
        self.made: Tensor | None = None

    def value(self) -> Tensor:
        if self.made is None:
            self.check()
            self.made = self.run(self.x) if self.mask is None else _sum([self], None)
        return self.made

    def check(self) -> None:
        """Refuse to compute with numbers that are no longer those of the call."""
        if self.seen != (_version(self.x), _version(self.mask)):
            raise RuntimeError(
                "what an expert was called with, or its mask, was written in place before the result was used: call "
                "undo() of what group_experts returned"
            )


class Sum(Waiting):
    """base + the masked results of experts, once somebody needs it."""

    def __init__(self, base: Tensor | None, terms: list[Deferred]) -> None:
        self.base, self.terms = base, terms

    def value(self) -> Tensor:
        if self.terms:
            self.base, self.terms = _sum(self.terms, self.base), []
        assert self.base is not None
        return self.base


def _version(x: Tensor | None) -> int:
    """How often it was written in place; tensors of inference mode do not count."""
    return -1 if x is None or x.is_inference() else x._version


def settled(tree: Any) -> Any:
    """The same with tensors for all that waits."""
    return pytree.tree_map(lambda leaf: leaf.value() if isinstance(leaf, Waiting) else leaf, tree)


def _of(func: Any, left: Any, right: Any) -> Any:
    """What the function of two makes of something that waits without computing it; None: nothing."""
    if func in _ADD_HERE and type(left) is Tensor and isinstance(right, Deferred) and right.mask is not None:
        return _added(left, right)
    one, other = (left, right) if isinstance(left, Waiting) else (right, left)
    if func in _MULTIPLY and isinstance(one, Deferred) and one.mask is None and isinstance(other, Tensor):
        return Deferred(one.run, one.x, other, one.seen[0]) if other.shape == (*one.x.shape[:-1], 1) else None
    if func not in _ADD:
        return None
    terms, base = _terms(one)
    more, other_base = _terms(other)
    if terms is None or more is None or (base is not None and other_base is not None):
        return None
    return Sum(base if base is not None else other_base, [*terms, *more])


def _terms(x: Any) -> tuple[list[Deferred] | None, Tensor | None]:
    """What is added up, and what it is added to; None for the former where that cannot be said."""
    if isinstance(x, Sum):
        return x.terms, x.base
    if isinstance(x, Deferred):
        return ([x], None) if x.mask is not None else (None, None)
    if isinstance(x, Tensor):
        return [], x
    return ([], None) if type(x) is int and x == 0 else (None, None)  # as Python's sum begins


def _rows(term: Deferred) -> tuple[Tensor, Tensor | None]:
    """The rows that the mask keeps, and what the expert makes of them times the mask; None if nobody needs none."""
    assert term.mask is not None
    term.check()
    flat, mask = term.x.reshape(-1, term.x.shape[-1]), term.mask.reshape(-1, 1)
    rows = mask.detach().squeeze(1).nonzero().squeeze(1)
    # With gradients an expert without rows runs too: its gradients are zero then, and not none.
    return rows, term.run(flat[rows]) * mask[rows] if len(rows) or torch.is_grad_enabled() else None


def _sum(terms: list[Deferred], base: Tensor | None) -> Tensor:
    found = [_rows(term) for term in terms]
    outs = [out for _, out in found if out is not None]
    x, mask = terms[0].x, terms[0].mask
    assert mask is not None
    out = torch.cat(outs) if outs else terms[0].run(x.reshape(-1, x.shape[-1])[:0]) * mask.reshape(-1, 1)[:0]
    y = out.new_zeros(mask.numel(), out.shape[1]).index_add(0, torch.cat([rows for rows, _ in found]), out)
    y = y.view(*x.shape[:-1], out.shape[1])
    return y if base is None else base + y


def _added(y: Tensor, term: Deferred) -> Tensor | None:
    """y with the rows added where it lies; None if that cannot be done by rows."""
    if not y.is_contiguous() or y.shape[:-1] != term.x.shape[:-1]:
        return None
    rows, out = _rows(term)
    if out is not None:
        y.view(-1, y.shape[-1]).index_add_(0, rows, out.to(y.dtype))
    return y

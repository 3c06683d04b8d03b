"""Parse einsum-like tensor expressions with a named reducer.

    C[n,f,x,y] += A[n,m,x+i,y+j] * B[f,m,i,j]
    ^ target   ^ reducer  ^ derived index      axes in no index of the target are reduced

    expression = operand reducer source         reducer = "=" | "+=" | "*=" | "max=" | ... | "cumsum(l)=" | ...
    source     = product { ("+" | "-") product }
    product    = operand { "*" operand }
    operand    = NAME "[" [ index { "," index } ] "]"
    index      = term { ("+" | "-") term }      term = NAME | INTEGER | INTEGER "*" NAME

Every error quotes the user's text and points at the place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

REDUCERS = ("=", "+=", "*=", "max=", "min=", "and=", "or=", "logsumexp=", "mean=", "var=")
"""Reducers of the axes that the target lacks."""
ALONG = ("cumsum", "scan", "softmax", "layernorm")
"""Functions along an axis that the target keeps, written `cumsum(l)=`."""

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>\d+)|(?P<mark>\+=|\*=|[\[\](),=+*-])|(?P<bad>\S))")


@dataclass(frozen=True)
class Index:
    """One subscript: `axes` it is made of, and whether it is more than the bare name of one axis."""

    text: str
    axes: tuple[str, ...]
    derived: bool


@dataclass(frozen=True)
class Operand:
    name: str
    indices: tuple[Index, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(axis for index in self.indices for axis in index.axes))


@dataclass(frozen=True)
class Expression:
    """A parsed expression. `products` is the source: a sum of products of operands."""

    text: str
    target: Operand
    reducer: str
    along: tuple[str, ...]
    products: tuple[tuple[Operand, ...], ...]

    @property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(operand for product in self.products for operand in product)

    @property
    def axes(self) -> tuple[str, ...]:
        """Every axis once, in order of first appearance."""
        return tuple(dict.fromkeys(axis for operand in (self.target, *self.operands) for axis in operand.axes))


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []
        place = 0
        while place < len(text) and (match := _TOKEN.match(text, place)):
            kind = str(match.lastgroup)
            token = _Token(kind, match[kind], match.start(kind))
            if kind == "bad":
                self.fail(f"{token.text!r} has no meaning here", token)
            self.tokens.append(token)
            place = match.end()
        self.tokens.append(_Token("end", "the end", len(text.rstrip())))
        self.next = 0

    def fail(self, problem: str, token: _Token) -> NoReturn:
        raise ValueError(f"expression: {problem}\n  {self.text}\n  {' ' * token.place}^ position {token.place}")

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def take(self, kind: str, text: str | None = None) -> _Token | None:
        token = self.token
        if token.kind != kind or (text is not None and token.text != text):
            return None
        self.next += 1
        return token

    def expect(self, kind: str, text: str | None, what: str) -> _Token:
        token = self.take(kind, text)
        if token is None:
            self.fail(f"expected {what}, found {self.token.text!r}", self.token)
        return token

    def index(self) -> Index:
        first, axes = self.next, []
        derived = self.take("mark", "-") is not None
        while True:
            number = self.take("number")
            if number is None or self.take("mark", "*"):
                axes.append(self.expect("name", None, "an axis after '*'" if number else "an axis or a number").text)
            derived |= number is not None
            if not (self.take("mark", "+") or self.take("mark", "-")):
                break
            derived = True
        text = "".join(token.text for token in self.tokens[first : self.next])
        if not axes:
            self.fail(f"the index {text!r} names no axis", self.tokens[first])
        return Index(text, tuple(dict.fromkeys(axes)), derived or len(axes) > 1)

    def operand(self) -> Operand:
        name = self.expect("name", None, "the name of a tensor")
        self.expect("mark", "[", f"'[' after {name.text}")
        indices: list[Index] = []
        if not self.take("mark", "]"):
            while True:
                place = self.token
                index = self.index()
                if any(set(index.axes) & set(other.axes) for other in indices):
                    self.fail(f"{name.text} uses an axis of {index.text!r} twice; diagonals are not supported", place)
                indices.append(index)
                if self.take("mark", "]"):
                    break
                self.expect("mark", ",", f"',' or ']' in the indices of {name.text}")
        return Operand(name.text, tuple(indices))

    def reducer(self) -> tuple[str, tuple[str, ...]]:
        for mark in ("=", "+=", "*="):
            if self.take("mark", mark):
                return mark, ()
        word = self.expect("name", None, f"a reducer ({' '.join(REDUCERS)}) after the target")
        along: list[str] = []
        if word.text in ALONG:
            self.expect("mark", "(", f"'(' and the axis that {word.text} runs along")
            along.append(self.expect("name", None, "an axis").text)
            while self.take("mark", ","):
                along.append(self.expect("name", None, "an axis").text)
            self.expect("mark", ")", "')'")
        elif f"{word.text}=" not in REDUCERS:
            known = ", ".join((*REDUCERS, *(f"{name}(axis)=" for name in ALONG)))
            self.fail(f"there is no reducer {word.text!r}; expected one of {known}", word)
        self.expect("mark", "=", f"'=' after {word.text}")
        return f"{word.text}=", tuple(along)

    def expression(self) -> Expression:
        target = self.operand()
        for index in target.indices:
            if index.derived:
                self.fail(f"the target must be indexed by plain axes, not {index.text!r}", self.tokens[0])
        at = self.token
        reducer, along = self.reducer()
        names = {target.name}
        products: list[tuple[Operand, ...]] = []
        product: list[Operand] = []
        while True:
            place = self.token
            operand = self.operand()
            if operand.name in names:
                self.fail(f"{operand.name} appears twice; give every use of a tensor a name of its own", place)
            names.add(operand.name)
            product.append(operand)
            if self.take("mark", "*"):
                continue
            products.append(tuple(product))
            product = []
            if not (self.take("mark", "+") or self.take("mark", "-")):
                break
        self.expect("end", None, "'*', '+', '-' or the end")
        expression = Expression(self.text, target, reducer, along, tuple(products))
        self._check(expression, at)
        return expression

    def _check(self, expression: Expression, at: _Token) -> None:
        given = {axis for operand in expression.operands for axis in operand.axes}
        for axis in expression.target.axes:
            if axis not in given:
                self.fail(f"axis {axis} of {expression.target.name} is in no operand", self.tokens[0])
        reduced = [axis for axis in expression.axes if axis not in expression.target.axes]
        if reduced and (expression.reducer == "=" or expression.along):
            self.fail(
                f"{expression.reducer!r} reduces nothing, but axis {reduced[0]} is not in "
                f"{expression.target.name}; name a reducer such as '+='",
                at,
            )
        for axis in expression.along:
            if axis not in expression.target.axes:
                self.fail(f"{expression.reducer!r} runs along axis {axis}, which {expression.target.name} lacks", at)


def parse(text: str) -> Expression:
    """Parse one expression.

    Raises:
        TypeError: text is no string. ValueError: it is not an expression; the message quotes it and points.

    >>> parse("C[m,n] += A[m,k] * B[k,n]").axes
    ('m', 'n', 'k')
    """
    if not isinstance(text, str):
        raise TypeError(f"expression must be a string, got {type(text).__name__}")
    return _Parser(text).expression()

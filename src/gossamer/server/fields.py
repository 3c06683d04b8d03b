"""Every field of a request is honoured, or refused by name: what request models say of their fields, and its table.

A field that this server has no use for is declared too, with the values that ask for nothing; any other is refused. A
field that is not declared is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from gossamer.server.errors import ApiError, invalid


class Request(BaseModel):
    """A request whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Support:
    """What the table says of a field."""

    def __init__(self, said: str) -> None:
        self.said = said


def only(*values: Any, why: str) -> Any:
    """A type for fields that may ask for nothing: absent, null, or one of `values`."""

    def check(value: Any) -> Any:
        if value is not None and not any(type(value) is type(each) and value == each for each in values):
            raise PydanticCustomError("unsupported", "{why}", {"why": f"is {value!r:.60}: {why}"})
        return value

    shown = ", ".join(repr(value) for value in values)
    return Annotated[
        Any, AfterValidator(check), WithJsonSchema({"enum": [None, *values]}),
        Support(f"refused ({why})" + (f"; may be {shown}" if shown else "")),
    ]  # fmt: skip


def label() -> Any:
    """A type for fields that mark a request and change nothing about its answer."""
    return Annotated[Any, Support("taken; changes nothing")]


DEEPEST = 64
"""Objects and lists within each other: what is deeper is nobody's request, and ends programs that follow it down."""


def parsed(raw: bytes) -> Any:
    """The value of a body in JSON: in UTF-8, of numbers and whole letters, not too deep.

    Raises:
        ApiError: 400.

    >>> parsed(b'{"n": 2}')
    {'n': 2}
    """
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}", code="invalid_json") from None
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        if (depth := depth + 1) > DEEPEST:
            raise invalid(f"the body has more than {DEEPEST} lists and objects in each other", code="invalid_json")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    if not isinstance(value, dict):
        raise invalid(f"the body is a {type(value).__name__}, expected an object", code="invalid_json")
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text:.40} is larger than a number can be")
    return value


def read(model: type[Request], body: Any) -> Any:
    """A request from JSON.

    Raises:
        ApiError: 400, naming the first field that is wrong, its value and what was expected.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _said(error) from None


def _said(error: ValidationError) -> ApiError:
    first, *others = error.errors(include_url=False)
    # Of a field that may be one of several things, what is wrong furthest inside it, or with its size, was meant.
    alike = [each for each in others if each["loc"][:1] == first["loc"][:1]]
    first = max((first, *alike), key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    name = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or "the body"
    if first["type"] == "extra_forbidden":
        return invalid(f"{name} is no field of this request", name, "unknown_field")
    if first["type"] == "missing":
        return invalid(f"{name} is missing", name, "missing")
    if first["type"] == "unsupported":
        return invalid(f"{name} {first['msg']}", name, "unsupported")
    said = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f" {value!r:.60}" if isinstance(value, (str, int, float, bool, type(None))) else ""
    return invalid(f"{name}{shown and ' is' + shown}: {said[:1].lower()}{said[1:]}", name, "invalid_value")


def _is_branch(part: Any) -> bool:
    """Names of types between the names of fields, where a field may be one of several."""
    kinds = ("str", "int", "float", "bool")
    return isinstance(part, str) and (
        part[:1].isupper() or "[" in part or part in kinds or part.startswith("constrained-")
    )


def table(model: type[Request]) -> Iterable[tuple[str, str]]:
    """Each field and what becomes of it."""
    for name, field in model.model_fields.items():
        said = next((each.said for each in field.metadata if isinstance(each, Support)), "honoured")
        yield name, said if field.description is None else f"{said}: {field.description}"


Positive = Annotated[int, Field(ge=1)]

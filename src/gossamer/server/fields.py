"""Every field of a request is honoured, or refused by name: what request models say of their fields, and its table.

A field that this server has no use for is declared too, with the values that ask for nothing; any other is refused. A
field that is not declared is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from gossamer.server.errors import ApiError, invalid


class Request(BaseModel):
    """A request whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False, protected_namespaces=())


class Support:
    """What the table says of a field."""

    def __init__(self, said: str) -> None:
        self.said = said


def only(*values: Any, why: str) -> Any:
    """A type for fields that may ask for nothing: absent, null, or one of `values`."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise PydanticCustomError("unsupported", "{why}", {"why": f"is {value!r:.60}: {why}"})
        return value

    shown = ", ".join(repr(value) for value in values)
    return Annotated[Any, AfterValidator(check), Support(f"refused ({why})" + (f"; may be {shown}" if shown else ""))]


def label() -> Any:
    """A type for fields that mark a request and change nothing about its answer."""
    return Annotated[Any, Support("taken; changes nothing")]


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
    first = error.errors(include_url=False)[0]
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
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("str", "int", "float", "bool"))


def table(model: type[Request]) -> Iterable[tuple[str, str]]:
    """Each field and what becomes of it."""
    for name, field in model.model_fields.items():
        said = next((each.said for each in field.metadata if isinstance(each, Support)), "honoured")
        yield name, said if field.description is None else f"{said}: {field.description}"


Positive = Annotated[int, Field(ge=1)]

"""The server's description of itself: an OpenAPI document, and the table of fields for the docs, both from the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gossamer.server.fields import Request, table
from gossamer.server.requests import Chat, Completions, Responses, Tokenize

ENDPOINTS: dict[str, type[Request]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/responses": Responses,
    "/tokenize": Tokenize,
}
_OWN = {"400": "wrong", "404": "no such model", "408": "too slow", "413": "too large", "415": "no JSON",
        "429": "the queue is full; see retry-after", "500": "the server failed", "503": "stopping"}  # fmt: skip
"""Errors of endpoints that take a body; every endpoint may say the others too."""
_EVERY = {"401": "no key, or a wrong one", "403": "a page of another origin", "405": "no such method",
          "500": "the server failed"}  # fmt: skip
_STRING, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}


def _object(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members, "required": list(members)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_REASON = {"enum": ["stop", "length", "tool_calls", "abort"]}
_MODEL = _object(id=_STRING, object={"const": "model"}, created=_COUNT, owned_by=_STRING, max_model_len=_COUNT)
_HEAD: dict[str, Any] = {"id": _STRING, "created": _COUNT, "model": _STRING, "usage": _USAGE}
_MESSAGE = _object(role={"const": "assistant"}, content=_or_null(_STRING))
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _object(
        object={"const": "chat.completion"}, **_HEAD,
        choices=_list(_object(index=_COUNT, message=_MESSAGE, logprobs={}, finish_reason=_REASON)),
    ),
    "/v1/completions": _object(
        object={"const": "text_completion"}, **_HEAD,
        choices=_list(_object(index=_COUNT, text=_STRING, logprobs={}, finish_reason=_REASON)),
    ),
    "/v1/responses": _object(
        id=_STRING, object={"const": "response"}, created_at=_COUNT, model=_STRING, output=_list({"type": "object"}),
        status={"enum": ["completed", "incomplete"]},
    ),
    "/tokenize": _object(count=_COUNT, max_model_len=_COUNT, tokens=_list(_COUNT)),
    "/v1/models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "/v1/models/{name}": _MODEL,
    "/live": _object(model=_STRING, running=_COUNT, waiting=_COUNT, requests=_list({"type": "object"})),
    "/openapi.json": _object(openapi=_STRING, paths={"type": "object"}),
}  # fmt: skip
_TEXTS = {"/": "text/html", "/health": "text/plain", "/ready": "text/plain", "/metrics": "text/plain"}


def document(models: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document of a server; `models`: the names of its model."""
    error = _object(message=_STRING, type=_STRING, param=_or_null(_STRING), code=_or_null(_STRING))
    schemas: dict[str, Any] = {"Error": _object(error=error)}
    paths: dict[str, Any] = {}
    for path, request in ENDPOINTS.items():
        schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        named = {"type": "string", "enum": list(models)}
        schema["properties"]["model"] = named if "model" in schema.get("required", ()) else _or_null(named)
        schemas[request.__name__] = schema
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request.__name__}"}}}
        answers = _answers(_OWN | _EVERY, {"application/json": {"schema": ANSWERS[path]}})
        if "stream" in request.model_fields:
            answers["200"]["content"]["text/event-stream"] = {}
        paths[path] = {"post": {"requestBody": {"required": True, "content": body}, "responses": answers}}
    for path in ("/v1/models", "/v1/models/{name}", "/live", "/openapi.json", *_TEXTS):
        kind = {_TEXTS[path]: {}} if path in _TEXTS else {"application/json": {"schema": ANSWERS[path]}}
        more = {"404": "no such model"} if "{" in path else {}
        paths[path] = {"get": {"responses": _answers(_EVERY | more, kind)}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": _STRING}
    ]
    for path in ("/health", "/ready"):
        paths[path]["get"]["responses"]["503"] = {"description": "not now", "content": {"text/plain": {}}}
    info = {"title": "Gossamer", "version": "1", "description": f"The model {models[0]}, by OpenAI's API."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _answers(errors: dict[str, str], kinds: dict[str, Any]) -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failed = {status: {"description": said, "content": body} for status, said in errors.items()}
    return {"200": {"description": "the answer", "content": kinds}, **failed}


def fields() -> str:
    """A Markdown table for each endpoint: every field, and what becomes of it."""
    parts = []
    for path, request in ENDPOINTS.items():
        rows = "\n".join(f"| `{name}` | {said} |" for name, said in sorted(table(request)))
        parts.append(f"### `POST {path}`\n\n| field | here |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)

"""The server's description of itself: an OpenAPI document, and the table of fields for the docs, both from the code."""

from __future__ import annotations

from typing import Any

from gossamer.server.fields import Request, table
from gossamer.server.requests import Chat, Completions, Responses, Tokenize

ENDPOINTS: dict[str, type[Request]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completions,
    "/v1/responses": Responses,
    "/tokenize": Tokenize,
}
_ERRORS = ("400", "401", "404", "413", "415", "429", "500", "503")


def document(model: str) -> dict[str, Any]:
    """The OpenAPI document of a server."""
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object", "required": ["error"],
            "properties": {
                "error": {
                    "type": "object", "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": {"type": "string"}, "type": {"type": "string"},
                        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
                    },
                }
            },
        }
    }  # fmt: skip
    paths: dict[str, Any] = {}
    for path, request in ENDPOINTS.items():
        schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schema["properties"]["model"] = {"type": "string", "enum": [model]}
        schemas[request.__name__] = schema
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request.__name__}"}}}
        paths[path] = {
            "post": {"requestBody": {"required": True, "content": body}, "responses": _answers(streams=True)}
        }
    for path, kind in (("/v1/models", "application/json"), ("/live", "application/json"), ("/health", "text/plain"),
                       ("/ready", "text/plain"), ("/metrics", "text/plain")):  # fmt: skip
        paths[path] = {"get": {"responses": {"200": {"description": "so it is", "content": {kind: {}}}, **_errors()}}}
    info = {"title": "Gossamer", "version": "1", "description": f"The model {model}, by OpenAI's API."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _errors() -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": "an error", "content": body} for status in _ERRORS}


def _answers(streams: bool) -> dict[str, Any]:
    kinds: dict[str, Any] = {"application/json": {}} | ({"text/event-stream": {}} if streams else {})
    return {"200": {"description": "the answer", "content": kinds}, **_errors()}


def fields() -> str:
    """A Markdown table for each endpoint: every field, and what becomes of it."""
    parts = []
    for path, request in ENDPOINTS.items():
        rows = "\n".join(f"| `{name}` | {said} |" for name, said in sorted(table(request)))
        parts.append(f"### `POST {path}`\n\n| field | here |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)

"""The web application: routes, who may ask, how much, and every error in one shape.

app = application(State(llm, ["smollm2"]))
uvicorn.run(app)
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gossamer.measure import clock
from gossamer.server.answer import Answer, answer
from gossamer.server.completions import ChatAnswer, PlainAnswer
from gossamer.server.conversation import tokens_of
from gossamer.server.errors import ApiError
from gossamer.server.fields import Request, parsed, read
from gossamer.server.live import picture
from gossamer.server.openapi import document
from gossamer.server.page import PAGE
from gossamer.server.requests import Chat, Completions, Responses, Tokenize
from gossamer.server.responses import ResponsesAnswer
from gossamer.server.state import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        body: bytes. seconds: in which a body must have come. key: what clients must send as "Authorization: Bearer
            ..."; None: nothing.
        origins: of pages elsewhere whose scripts may ask, like "https://chat.example"; "*": of all.
    """

    body: int = 8 << 20
    seconds: float = 60.0
    key: str | None = None
    origins: tuple[str, ...] = ()


Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Server:
    """The endpoints of one model."""

    def __init__(self, state: State, limits: Limits) -> None:
        self.state, self.limits = state, limits
        self.started = clock.seconds_since_epoch()

    async def body(self, http: HttpRequest, model: type[Request]) -> Any:
        """The JSON of a request as a request of a kind.

        Raises:
            ApiError: 400, 408, 413 or 415.
        """
        kind = http.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"content-type is {kind!r:.80}, expected application/json", code="content_type")
        try:
            raw = await asyncio.wait_for(_bytes(http, self.limits.body), self.limits.seconds)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body took more than {self.limits.seconds} seconds", code="timeout") from None
        return read(model, parsed(raw))

    async def chat(self, http: HttpRequest) -> Response:
        request = await self.body(http, Chat)
        return await self._answer(http, request, request.n or 1, ChatAnswer)

    async def completions(self, http: HttpRequest) -> Response:
        request = await self.body(http, Completions)
        return await self._answer(http, request, (request.n or 1) * len(request.prompts), PlainAnswer)

    async def responses(self, http: HttpRequest) -> Response:
        return await self._answer(http, await self.body(http, Responses), 1, ResponsesAnswer)

    async def _answer(self, http: HttpRequest, request: Any, count: int, kind: Callable[..., Answer]) -> Response:
        self.state.check_model(request.model)
        return await answer(http, self.state.loop, count, partial(kind, self.state, request), bool(request.stream))

    async def tokenize(self, http: HttpRequest) -> Response:
        request = await self.body(http, Tokenize)
        self.state.check_model(request.model)

        def tokens() -> list[int]:
            if request.messages is not None:
                return tokens_of(self.state, request.messages, [])
            return self.state.encode(request.prompt, "prompt", special=request.add_special_tokens)

        made = await asyncio.to_thread(tokens)
        return JSONResponse({"count": len(made), "max_model_len": self.state.longest, "tokens": made})

    async def models(self, http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.state.names]})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        self.state.check_model(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": self.started, "owned_by": "gossamer",
            "max_model_len": self.state.longest,
        }  # fmt: skip

    async def health(self, http: HttpRequest) -> Response:
        return PlainTextResponse("ok\n") if self.state.loop.alive else PlainTextResponse("the engine has ended\n", 503)

    async def ready(self, http: HttpRequest) -> Response:
        loop = self.state.loop
        if loop.draining or not loop.alive:
            return PlainTextResponse("shutting down\n", 503)
        return PlainTextResponse("ready\n")

    async def metrics(self, http: HttpRequest) -> Response:
        text, kind = self.state.metrics.text()
        return Response(text, media_type=kind)

    async def live(self, http: HttpRequest) -> Response:
        return JSONResponse(await self.state.loop.ask(partial(picture, self.state)))

    async def page(self, http: HttpRequest) -> Response:
        return HTMLResponse(PAGE.replace("{{model}}", json.dumps(self.state.names[0])), headers=_PAGE_HEADERS)

    async def openapi(self, http: HttpRequest) -> Response:
        return JSONResponse(document(self.state.names))


_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}
_OPEN = ("/health", "/ready", "/")
"""What answers without a key."""


def application(state: State, limits: Limits | None = None) -> Starlette:
    """The application of one model.

    Args:
        state: the model and its engine's thread, which it closes at the end.
        limits: of requests.
    """
    server = Server(state, limits or Limits())
    routes: list[tuple[str, str, Endpoint]] = [
        ("POST", "/v1/chat/completions", server.chat),
        ("POST", "/v1/completions", server.completions),
        ("POST", "/v1/responses", server.responses),
        ("POST", "/tokenize", server.tokenize),
        ("GET", "/v1/models", server.models),
        ("GET", "/v1/models/{name:path}", server.model),
        ("GET", "/health", server.health),
        ("GET", "/ready", server.ready),
        ("GET", "/metrics", server.metrics),
        ("GET", "/live", server.live),
        ("GET", "/openapi.json", server.openapi),
        ("GET", "/", server.page),
    ]
    shared = Middleware(
        CORSMiddleware, allow_origins=server.limits.origins, allow_methods=("GET", "POST"),
        allow_headers=("*",), expose_headers=("x-request-id", "retry-after"),
    )  # fmt: skip
    app = Starlette(
        routes=[
            Route(path, _answering(endpoint, server.limits), methods=[method]) for method, path, endpoint in routes
        ],
        middleware=[shared] if server.limits.origins else [],
        exception_handlers={HTTPException: _of_http},
    )
    app.state.gossamer = state
    return app


def _answering(endpoint: Endpoint, limits: Limits) -> Endpoint:
    """An endpoint whose errors are answers, and that answers only who may ask."""

    async def answering(http: HttpRequest) -> Response:
        try:
            _check_origin(http, limits)
            _check_key(http, limits.key)
            response = await endpoint(http)
        except ApiError as error:
            response = JSONResponse(error.body, error.status, headers=error.headers)
        except ClientDisconnect:
            response = Response(status_code=400)
        except Exception:
            logger.exception("%s failed", http.url.path)
            failed = ApiError(500, "the server failed at this request; its log says why", code="internal_error")
            response = JSONResponse(failed.body, 500)
        return _numbered(http, response)

    return answering


def _numbered(http: HttpRequest, response: Response) -> Response:
    """The answer with the number of its request: the client's own, or a new one."""
    response.headers["x-request-id"] = http.headers.get("x-request-id", f"req_{secrets.token_hex(12)}")[:128]
    return response


def _check_origin(http: HttpRequest, limits: Limits) -> None:
    """A page elsewhere has its visitors' browsers ask: refused, unless it is known. Browsers say whose page it is.

    Whoever owns a name can have it mean this machine; so without a key pages of a name are pages elsewhere.
    """
    origin = http.headers.get("origin")
    if origin is None or "*" in limits.origins or origin in limits.origins:
        return
    host = http.headers.get("host", "").lower()
    own = origin.lower() in (f"http://{host}", f"https://{host}")
    if not own or (limits.key is None and not _is_address(origin)):
        raise ApiError(
            403, f"pages of {origin!r:.80} may not ask this server; gossamer serve --origins allows it",
            code="origin_not_allowed",
        )  # fmt: skip


def _is_address(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _check_key(http: HttpRequest, key: str | None) -> None:
    if key is None or http.url.path in _OPEN:
        return
    kind, _, said = http.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(said.strip().encode("latin-1"), key.encode()):
        raise ApiError(
            401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
        )


async def _bytes(http: HttpRequest, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413, it has more than `most` bytes.
    """
    parts, size = [], 0
    said = http.headers.get("content-length", "0")
    if not said.isdigit() or int(said) <= _REST * most:
        async for part in http.stream():
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > _REST * most:
                break
        if size <= most:
            return b"".join(parts)
    raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


_REST = 4
"""A body that is too large is read and dropped up to so many times the limit: who still sends reads no answer."""


async def _of_http(http: HttpRequest, error: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    said = f"{http.method} {http.url.path:.200} does not exist" if error.status_code in (404, 405) else error.detail
    status = error.status_code if error.status_code in (400, 404, 405) else 400
    code = {404: "not_found", 405: "method_not_allowed"}.get(status)
    response = JSONResponse(ApiError(status, said, code=code).body, status, headers=dict(error.headers or {}))
    return _numbered(http, response)

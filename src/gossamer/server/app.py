"""The web application: routes, who may ask, how much, and every error in one shape.

app = application(State(llm, ["smollm2"]))
uvicorn.run(app)
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gossamer.measure import clock
from gossamer.server.answer import gathered
from gossamer.server.completions import UNBUFFERED, ChatAnswer, PlainAnswer, answer, guarded
from gossamer.server.conversation import tokens_of
from gossamer.server.errors import ApiError, invalid
from gossamer.server.fields import Request, read
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
        body: bytes. key: what clients must send as "Authorization: Bearer ..."; None: nothing.
    """

    body: int = 8 << 20
    key: str | None = None


Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Server:
    """The endpoints of one model."""

    def __init__(self, state: State, limits: Limits) -> None:
        self.state, self.limits = state, limits
        self.started = clock.seconds_since_epoch()

    async def body(self, http: HttpRequest, model: type[Request]) -> Any:
        """The JSON of a request, of no more than so many bytes, as a request of a kind.

        Raises:
            ApiError: 400, 413 or 415.
        """
        kind = http.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"content-type is {kind!r:.80}, expected application/json", code="content_type")
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > self.limits.body:
                raise ApiError(413, f"the body has more than {self.limits.body} bytes", code="body_too_large")
            parts.append(part)
        try:
            said = json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise invalid(f"the body is no JSON: {error}", code="invalid_json") from None
        if not isinstance(said, dict):
            raise invalid(f"the body is a {type(said).__name__}, expected an object", code="invalid_json")
        return read(model, said)

    async def chat(self, http: HttpRequest) -> Response:
        request = await self.body(http, Chat)
        self.state.check_model(request.model)
        return await answer(http, ChatAnswer(self.state, request))

    async def completions(self, http: HttpRequest) -> Response:
        request = await self.body(http, Completions)
        self.state.check_model(request.model)
        return await answer(http, PlainAnswer(self.state, request))

    async def responses(self, http: HttpRequest) -> Response:
        request = await self.body(http, Responses)
        self.state.check_model(request.model)
        made = ResponsesAnswer(self.state, request)
        generations = made.start()
        if request.stream:
            return StreamingResponse(
                guarded(made.stream(generations)), media_type="text/event-stream", headers=UNBUFFERED
            )
        return JSONResponse(made.whole(await gathered(http, generations), generations))

    async def tokenize(self, http: HttpRequest) -> Response:
        request = await self.body(http, Tokenize)
        self.state.check_model(request.model)
        if request.messages is not None:
            tokens = tokens_of(self.state.llm, request.messages, [])
        else:
            tokens = self.state.encode(request.prompt, "prompt")
        longest = self.state.llm.engine.max_length
        return JSONResponse({"count": len(tokens), "max_model_len": longest, "tokens": tokens})

    async def models(self, http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.state.names]})

    async def model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        self.state.check_model(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        longest = self.state.llm.engine.max_length
        return {
            "id": name, "object": "model", "created": self.started, "owned_by": "gossamer", "max_model_len": longest,
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
        return JSONResponse(picture(self.state))

    async def page(self, http: HttpRequest) -> Response:
        return HTMLResponse(PAGE.replace("{{model}}", json.dumps(self.state.names[0])), headers=_PAGE_HEADERS)

    async def openapi(self, http: HttpRequest) -> Response:
        return JSONResponse(document(self.state.names[0]))


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
    app = Starlette(
        routes=[
            Route(path, _answering(endpoint, server.limits), methods=[method]) for method, path, endpoint in routes
        ],
        exception_handlers={HTTPException: _of_http},
    )
    app.state.gossamer = state
    return app


def _answering(endpoint: Endpoint, limits: Limits) -> Endpoint:
    """An endpoint whose errors are answers, and that answers only who may ask."""

    async def answering(http: HttpRequest) -> Response:
        number = http.headers.get("x-request-id", f"req_{secrets.token_hex(12)}")[:128]
        try:
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
        response.headers["x-request-id"] = number.encode("latin-1", "replace").decode("latin-1")
        return response

    return answering


def _check_key(http: HttpRequest, key: str | None) -> None:
    if key is None or http.url.path in _OPEN:
        return
    said = http.headers.get("authorization", "")
    if not hmac.compare_digest(said.encode(), f"Bearer {key}".encode()):
        raise ApiError(
            401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
        )


async def _of_http(http: HttpRequest, error: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    said = f"{http.method} {http.url.path:.200} does not exist" if error.status_code in (404, 405) else error.detail
    status = error.status_code if error.status_code in (400, 404, 405) else 400
    return JSONResponse(ApiError(status, said, code="not_found").body, status, headers=dict(error.headers or {}))

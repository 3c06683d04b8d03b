"""Errors in the shape that clients of OpenAI's API read: a status, a message, and the parameter that was wrong."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP. message: one sentence. param: the field that was wrong. code: a word for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": _KINDS[self.status], "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error",
}  # fmt: skip


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that asks for what cannot be: 400."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, value: Any, expected: str) -> ApiError:
    """A field that OpenAI's API has and this server does not."""
    return invalid(
        f"{param} is {value!r:.60}, which this server does not support; expected {expected}", param, "unsupported"
    )

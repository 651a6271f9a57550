"""Errors as clients see them: in the words of what they asked for, with headers that tell SDKs whether to try again."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from backends.endpoints import ANTHROPIC, TGI
from gateway.core.errors import AnswerTooLarge, BadFraming, GatewayError, Rejected, UpstreamError

MAX_RETRY_AFTER = 120.0
_ANTHROPIC: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Types of Anthropic's errors by status; others below 500 are the caller's, those above the server's."""
_TGI: Final = {400: "validation", 422: "validation", 503: "overloaded", 500: "generation", 502: "generation"}
"""Types of TGI's errors by status, those that its clients know."""


def render(error: GatewayError, request_id: str, endpoint: str = "") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body for an error. Texts of upstreams and bugs stay inside; the request id leads to them."""
    body = error.body if isinstance(error, Rejected) and error.body is not None else None
    if body is None:
        body = envelope(error, request_id, endpoint)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
    if endpoint in ANTHROPIC:
        headers.append((b"request-id", request_id.encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.retry_after is not None:
        seconds = min(error.retry_after, MAX_RETRY_AFTER)
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
        headers.append((b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)))
    if error.status in (405, 408, 413) or isinstance(error, BadFraming):
        headers.append((b"connection", b"close"))  # what else comes on it is not wanted
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return error.status, headers, body


def envelope(error: GatewayError, request_id: str, endpoint: str = "") -> bytes:
    """The JSON body that the SDKs for this endpoint turn into typed exceptions."""
    if isinstance(error, UpstreamError):
        message = f"{error.public} (request {request_id})"
    elif isinstance(error, AnswerTooLarge):
        message = f"{error.message} (request {request_id})"
    else:
        message = error.message or f"The gateway failed to handle the call. (request {request_id})"
    said: dict[str, Any]
    if endpoint in ANTHROPIC:
        kind = _ANTHROPIC.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        said = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    elif endpoint in TGI:
        said = {"error": message, "error_type": _TGI.get(error.status, error.code or error.type)}
    else:
        said = {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}
    return msgspec.json.encode(said)


def event(body: bytes, endpoint: str) -> bytes:
    """The event that tells, in a stream that has begun, of the error whose JSON body this is."""
    if endpoint in ANTHROPIC:
        return b"event: error\ndata: " + body + b"\n\n"
    if endpoint == "responses":
        error = msgspec.json.decode(body).get("error")
        # OpenAI's SDKs raise for `error`, others read the fields beside it.
        flat = {name: error.get(name) for name in ("code", "message", "param")} if isinstance(error, dict) else {}
        return b"event: error\ndata: " + msgspec.json.encode({"type": "error", **flat, "error": error}) + b"\n\n"
    return b"data: " + body + b"\n\n"

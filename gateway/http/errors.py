"""Errors as clients see them: OpenAI's envelope, headers that tell SDKs whether to try again."""

from __future__ import annotations

import math

import msgspec

from gateway.core.errors import AnswerTooLarge, BadFraming, GatewayError, Rejected, UpstreamError

MAX_RETRY_AFTER = 120.0


def render(error: GatewayError, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body for an error. Texts of upstreams and bugs stay inside; the request id leads to them."""
    body = error.body if isinstance(error, Rejected) and error.body is not None else envelope(error, request_id)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
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


def envelope(error: GatewayError, request_id: str) -> bytes:
    """The JSON body that OpenAI SDKs turn into typed exceptions."""
    if isinstance(error, UpstreamError):
        message = f"{error.public} (request {request_id})"
    elif isinstance(error, AnswerTooLarge):
        message = f"{error.message} (request {request_id})"
    else:
        message = error.message or f"The gateway failed to handle the call. (request {request_id})"
    return msgspec.json.encode(
        {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}
    )

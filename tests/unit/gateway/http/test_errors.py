"""Errors on the wire: an envelope that SDKs type, headers that tell them what to do, and no secrets of upstreams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from gateway.core import errors
from gateway.core.errors import (
    AnswerMemoryFull,
    BodyMemoryFull,
    FilesUnavailable,
    GatewayError,
    Internal,
    OutOfBudget,
    RateLimited,
    Rejected,
    ShuttingDown,
    TooManyBodies,
    Unauthenticated,
    UpstreamError,
)
from gateway.http.errors import render

SECRET = "connect to 10.1.2.3:8000 failed"


def tree(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def make(kind: type[GatewayError]) -> GatewayError:
    special: dict[type, Any] = {
        RateLimited: lambda: RateLimited("slow down", retry_after=2.0),
        OutOfBudget: lambda: OutOfBudget("spent", retry_after=2.0, reserved=False),
        Rejected: lambda: Rejected(422, "no", param="tools"),
        Unauthenticated: Unauthenticated,
        ShuttingDown: ShuttingDown,
        AnswerMemoryFull: lambda: AnswerMemoryFull(1024),
        BodyMemoryFull: lambda: BodyMemoryFull(1024),
        FilesUnavailable: lambda: FilesUnavailable(SECRET),
        TooManyBodies: lambda: TooManyBodies("key", 1024),
    }
    error: GatewayError = special.get(kind, lambda: kind(SECRET, param="p"))()
    return error


EVERY = [make(kind) for kind in tree()]


def named() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)


@named()
def test_every_error_has_a_valid_envelope(error: GatewayError) -> None:
    status, headers, body = render(error, "tl-1")
    assert status == error.status
    decoded = json.loads(body)
    assert decoded.keys() == {"error"}
    assert decoded["error"].keys() == {"message", "type", "param", "code"}
    assert decoded["error"]["message"] and decoded["error"]["type"] == error.type
    assert decoded["error"]["param"] == error.param and decoded["error"]["code"] == error.code
    shown = dict(headers)
    assert len(shown) == len(headers)
    assert shown[b"content-type"] == b"application/json"
    assert shown[b"content-length"] == str(len(body)).encode()
    assert shown[b"x-request-id"] == b"tl-1"
    assert all(name == name.lower() for name in shown)


@named()
def test_texts_about_upstreams_stay_inside(error: GatewayError) -> None:
    _, _, body = render(error, "tl-1")
    if isinstance(error, UpstreamError):
        assert SECRET.encode() not in body
        assert b"tl-1" in body, "the id leads to our log"


def test_a_bug_tells_its_id_and_nothing_else() -> None:
    _, _, body = render(Internal(), "tl-77")
    assert "tl-77" in json.loads(body)["error"]["message"]


TYPED = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}


@named()
def test_the_openai_sdk_raises_its_typed_error(error: GatewayError) -> None:
    calls = 0

    def answer(_: Any) -> Any:
        nonlocal calls
        calls += 1
        status, headers, body = render(error, "tl-9")
        return httpx2.Response(status, headers=headers, content=body)

    http_client = httpx2.Client(transport=httpx2.MockTransport(answer))
    sdk = openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http_client, max_retries=0)
    with sdk as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[])
    assert type(caught.value) is TYPED.get(error.status, openai.APIStatusError)
    assert caught.value.status_code == error.status
    assert caught.value.code == error.code and caught.value.type == error.type and caught.value.param == error.param
    assert caught.value.request_id == "tl-9"
    assert calls == 1


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (errors.BadRequest("x"), False),
        (errors.Forbidden("x"), False),
        (errors.BodyTimeout("x"), False),
        (RateLimited("x", retry_after=0.01), True),
        (errors.NoTarget("x", retry_after=0.01), True),
        (errors.LimitsUnavailable("x", retry_after=0.01), True),
        (errors.NeverFits("x"), False),
        (OutOfBudget("x", retry_after=0.01, reserved=False), False),
        (OutOfBudget("x", retry_after=0.01, reserved=True), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_openai_sdk_retries_only_what_may_help(error: GatewayError, retried: bool) -> None:
    calls = 0

    def answer(_: Any) -> Any:
        nonlocal calls
        calls += 1
        status, headers, body = render(error, "tl-9")
        return httpx2.Response(status, headers=headers, content=body)

    http_client = httpx2.Client(transport=httpx2.MockTransport(answer))
    sdk = openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http_client, max_retries=1)
    with sdk as client, pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="m", messages=[])
    assert calls == 1 + retried


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.0, b"1", b"0"), (0.017, b"1", b"17"), (1.0, b"1", b"1000"), (1.2, b"2", b"1200"), (7200.0, b"120", b"120000")],
)
def test_retry_after_is_rounded_up_and_at_most_two_minutes(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    headers = dict(render(RateLimited("x", retry_after=seconds), "r")[1])
    assert headers[b"retry-after"] == whole
    assert headers[b"retry-after-ms"] == milliseconds


def test_the_upstreams_own_words_go_on_as_they_are() -> None:
    body = b'{"error": {"message": "max_tokens is 1.50"}}'
    status, headers, shown = render(Rejected(422, "", body=body), "tl-1")
    assert (status, shown) == (422, body)
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert dict(headers)[b"x-should-retry"] == b"false"


def test_headers_of_the_error_are_sent() -> None:
    error = RateLimited("x", retry_after=1)
    error.headers = {"x-ratelimit-remaining-requests": "0"}
    assert (b"x-ratelimit-remaining-requests", b"0") in render(error, "r")[1]


def test_a_body_that_is_not_wanted_ends_the_connection() -> None:
    for kind in (errors.MethodNotAllowed, errors.BodyTimeout, errors.BodyTooLarge, errors.BadFraming):
        assert (b"connection", b"close") in render(kind("x"), "r")[1]

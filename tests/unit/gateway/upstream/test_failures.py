"""What the HTTP client's failures and targets' answers mean, and how events that came together become one chunk."""

from __future__ import annotations

import inspect
import ssl
import time
from collections.abc import Iterator
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest

from backends.api import Call, Chunk, UpstreamFault
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.core.errors import (
    BadReply,
    Disconnected,
    Rejected,
    Unreachable,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.upstream import FAILURES, failure, retry_after
from gateway.upstream.reading import EventReader
from gateway.upstream.transport import translated

CALL = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=True, include_usage=True)


def exceptions() -> Iterator[type[Exception]]:
    """Every exception that httpx can raise."""
    for _, member in inspect.getmembers(httpx):
        if inspect.isclass(member) and issubclass(member, Exception):
            yield member


EVERY = sorted(exceptions(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_exception_of_httpx_means_something(kind: type[Exception]) -> None:
    assert any(base in FAILURES for base in kind.__mro__), f"{kind.__name__} is not mapped"
    error = failure(kind.__new__(kind))
    assert isinstance(error, UpstreamError) and type(error) is not UpstreamError


def test_the_table_holds_no_strangers() -> None:
    assert set(FAILURES) <= set(EVERY)
    assert all(issubclass(ours, UpstreamError) for ours in FAILURES.values())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (httpx.ConnectError("refused"), Unreachable),
        (httpx.ConnectTimeout("slow"), Unreachable),
        (httpx.PoolTimeout("full"), Unreachable),
        (httpx.ReadTimeout("slow"), UpstreamTimeout),
        (httpx.ReadError("reset"), Disconnected),
        (httpx.RemoteProtocolError("garbage"), BadReply),
        (httpx.DecodingError("gzip"), BadReply),
        (httpx.InvalidURL("url"), Unreachable),
        (httpx.StreamClosed(), Disconnected),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_failures_mean(theirs: Exception, ours: type[UpstreamError]) -> None:
    assert type(failure(theirs)) is ours


def aiohttp_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        key: Any = SimpleNamespace(host="h", port=1, ssl=True, is_ssl=True)
        return kind(key, OSError(111, "refused"))
    return kind.__new__(kind)


def aiohttp_exceptions() -> Iterator[type[Exception]]:
    for _, member in inspect.getmembers(aiohttp):
        if inspect.isclass(member) and issubclass(member, aiohttp.ClientError):
            yield member


@pytest.mark.parametrize("kind", list(aiohttp_exceptions()), ids=lambda kind: kind.__name__)
def test_every_exception_of_aiohttp_means_something(kind: type[Exception]) -> None:
    error = failure(translated(aiohttp_error(kind)))
    assert isinstance(error, UpstreamError) and type(error) is not UpstreamError


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (aiohttp.ServerDisconnectedError(), Disconnected),
        (aiohttp.ClientOSError(104, "reset"), Disconnected),
        (aiohttp.ClientPayloadError("cut"), Disconnected),
        (ConnectionResetError(), Disconnected),
        (BrokenPipeError(), Disconnected),
        (aiohttp.ConnectionTimeoutError(), Unreachable),
        (aiohttp.SocketTimeoutError(), UpstreamTimeout),
        (aiohttp.InvalidURL("http://["), Unreachable),
        (ssl.SSLError("handshake"), Unreachable),
        (aiohttp_error(aiohttp.ClientConnectorError), Unreachable),
        (aiohttp_error(aiohttp.ClientConnectorDNSError), Unreachable),
        (aiohttp_error(aiohttp.ClientResponseError), BadReply),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_failures_of_aiohttp_mean(theirs: Exception, ours: type[UpstreamError]) -> None:
    assert type(failure(translated(theirs))) is ours


@pytest.mark.parametrize(
    ("status", "ours"),
    [
        (400, Rejected),
        (404, Rejected),
        (422, Rejected),
        (401, UpstreamFailed),
        (403, UpstreamFailed),
        (408, UpstreamFailed),
        (429, UpstreamBusy),
        (500, UpstreamFailed),
        (502, UpstreamFailed),
        (503, UpstreamBusy),
        (599, UpstreamFailed),
    ],
)
def test_a_fault_in_a_good_answer_is_blamed_by_its_status(status: int, ours: type[Exception]) -> None:
    class Faulty(OpenAI):
        def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
            raise UpstreamFault(status, "said", param="p")

    reader = EventReader(CALL, Capabilities.of(Faulty()), 1000)
    assert reader.feed(b"data: x\n\n") is None
    assert type(reader.failure) is ours
    if isinstance(reader.failure, Rejected):
        assert (reader.failure.status, reader.failure.param) == (status, "p")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("1.5", 1.5),
        ("30", 30),
        ("86400", 120),
        ("inf", 120),
        ("nan", None),
        ("-3", 0),
        ("soon", None),
        ("Fri, 31 Feb 2099 00:00:00 GMT", None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 120),
        ("9" * 5000, 120),
    ],
)
def test_retry_after_in_every_form(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)

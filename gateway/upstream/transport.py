"""httpx's transport seam with aiohttp behind it: a pool that survives cancelled calls, at little CPU."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Final
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from yarl import URL

IDLE_CONNECTION_SECONDS = 4.0
"""uvicorn (so vLLM) and llama.cpp close an idle connection after 5 s: ours must be gone before."""

BLOCK_BYTES = 16 * 1024
"""Of an answer at once. What is read is copied on its way, and stays in memory while its client is slow."""

PLAIN: Final = ("identity", "")
"""Content codings of a call's answer that is passed on; others would have to be unpacked to be looked at."""

# What aiohttp raises, in httpx's words. The most specific class in the exception's MRO decides.
TRANSLATIONS: Final[dict[type[Exception], type[httpx.TransportError]]] = {
    aiohttp.ClientError: httpx.TransportError,
    aiohttp.ClientConnectionError: httpx.ReadError,
    aiohttp.ClientConnectorError: httpx.ConnectError,
    aiohttp.ServerDisconnectedError: httpx.ReadError,
    aiohttp.ConnectionTimeoutError: httpx.ConnectTimeout,
    aiohttp.ServerTimeoutError: httpx.ReadTimeout,
    aiohttp.ClientPayloadError: httpx.ReadError,
    aiohttp.ClientResponseError: httpx.RemoteProtocolError,
    aiohttp.InvalidURL: httpx.UnsupportedProtocol,
    ssl.SSLError: httpx.ConnectError,
    ConnectionError: httpx.ReadError,
}
_CAUGHT = tuple(TRANSLATIONS)
_reused: ContextVar[bool] = ContextVar("reused", default=False)


class Post(httpx.Request):
    """A POST whose parts need no more work: httpx would look at each again, at a tenth of what a call costs us.

    `Host` and `Content-Length` are the transport's to add.
    """

    def __init__(self, url: str, headers: dict[str, str], body: bytes, connect: float) -> None:
        self.method, self.url, self.address = "POST", _parsed(url), _address(url)
        self.headers = httpx.Headers([(name.encode(), value.encode()) for name, value in headers.items()])
        self.plain_headers = headers
        self.extensions = {"timeout": {"connect": connect}}
        self.stream = httpx.ByteStream(body)
        self._content = body


class Transport(httpx.AsyncBaseTransport):
    """One pool for all targets. Raises `httpx.TransportError`s whose text holds no header and no byte of an answer."""

    def __init__(self) -> None:
        self._pooled: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._pooled is None:
            self._pooled = _session(_Connector(limit=0, keepalive_timeout=IDLE_CONNECTION_SECONDS, ttl_dns_cache=10))
            self._fresh = _session(_Connector(limit=0, force_close=True))
        assert self._fresh is not None
        try:
            return await self._exchange(self._pooled, request)
        except httpx.ReadError:
            if not _reused.get():
                raise
        # The target had closed this connection while it was idle: it cannot have read the request.
        return await self._exchange(self._fresh, request)

    async def aclose(self) -> None:
        for session in (self._pooled, self._fresh):
            if session is not None:
                await session.close()

    async def _exchange(self, session: aiohttp.ClientSession, request: httpx.Request) -> httpx.Response:
        if isinstance(request, Post):
            address, headers = request.address, request.plain_headers
        else:
            address, headers = URL(str(request.url)), dict(request.headers)
        try:
            response = await session.request(
                request.method,
                address,
                headers=headers,
                data=request.content or None,
                allow_redirects=False,
                auto_decompress=False,
                timeout=_timeout(request.extensions.get("timeout", {}).get("connect")),
            )
        except _CAUGHT as error:
            raise translated(error) from error
        if isinstance(request, Post) and (fault := _unfit(response)):
            response.close()
            raise httpx.RemoteProtocolError(fault)
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Blocks(response), request=request)


class _Blocks(httpx.AsyncByteStream):
    """An answer's body, block by block as it arrives. Closing it early closes the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content = self._response.content
        try:
            block = await content.read(BLOCK_BYTES)
        except _CAUGHT as error:
            # aiohttp tells a break at once, before what had come until then; only its inner method gives that out.
            block = content._read_nowait(BLOCK_BYTES)
            if not block:
                raise translated(error) from error
        if not block:
            raise StopAsyncIteration
        return block

    async def aclose(self) -> None:
        self._response.release()


class _Protocol(ResponseHandler):
    """Tells broken framing to the reader of an answer, too, who would wait on: aiohttp has told who awaits a head."""

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError())


class _Connector(aiohttp.TCPConnector):
    """Tells, in `_reused`, whether the connection that a call got had served another before."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        protocol: type[ResponseHandler] = _Protocol
        self._factory = partial(protocol, loop=self._loop)
        self._served: WeakSet[Any] = WeakSet()

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        connection = await super().connect(*arguments, **options)
        reused = connection.protocol in self._served
        _reused.set(reused)
        if not reused:
            self._served.add(connection.protocol)
        return connection


def _unfit(answer: aiohttp.ClientResponse) -> str:
    """Why an answer cannot be passed on, by its head; empty: it can."""
    headers = answer.headers
    if headers.get("content-encoding", "identity").lower() not in PLAIN:
        return "the answer is compressed, which was not asked for"
    if not headers.get("content-type", "").isascii():
        return "the answer's content type is not ASCII"
    return ""


def translated(error: Exception) -> httpx.TransportError:
    """aiohttp's exception as httpx's. Only what the operating system said is quoted."""
    what = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
    kind = next(kind for kind in type(error).__mro__ if kind in TRANSLATIONS)
    return TRANSLATIONS[kind](what)


def _session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept"),
        read_bufsize=BLOCK_BYTES,
    )


@cache
def _timeout(connect: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect)


@cache
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)  # parsing one takes longer than all else about a request


@cache
def _address(url: str) -> URL:
    return URL(url)

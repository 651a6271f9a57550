"""httpx's transport seam over the pool: questions to targets are asked in httpx's words, on the calls' connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import httpx

from gateway.core.errors import BadReply, Disconnected, Unreachable, UpstreamError
from gateway.upstream.connection import Response
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool

IN_HTTPX_WORDS: Final[dict[type[UpstreamError], type[httpx.TransportError]]] = {
    Unreachable: httpx.ConnectError,
    Disconnected: httpx.ReadError,
    BadReply: httpx.RemoteProtocolError,
}

REPEATABLE: Final = ("GET", "HEAD")
"""Questions that change nothing: asked again on a connection of their own when one ends unanswered."""


class Transport(httpx.AsyncBaseTransport):
    """Sends requests to the origin that their extension `origin` holds, whose paths begin with that of its URL.

    The extension `timeout` has httpx's `connect`, in seconds; other times are for the caller to keep. Bodies are bytes.
    Raises `httpx.ConnectError`, `httpx.ReadError`, `httpx.RemoteProtocolError`.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin: Origin = request.extensions["origin"]
        path = request.url.raw_path.decode("ascii").removeprefix(origin.path)
        headers = [pair for pair in request.headers.raw if pair[0].lower() not in (b"host", b"content-length")]
        body = request.content or (None if request.method in ("GET", "HEAD") else b"")
        connect = request.extensions["timeout"]["connect"]
        asked = origin, request.method, path, headers, body, connect
        try:
            try:
                response = await self._pool.request(*asked)
            except Disconnected:
                if request.method not in REPEATABLE:
                    raise
                response = await self._pool.request(*asked, reuse=False)  # it may have crossed the end of an idle one
        except tuple(IN_HTTPX_WORDS) as error:
            raise in_httpx_words(error) from error
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response), request=request)


class _Body(httpx.AsyncByteStream):
    """An answer's body, piece by piece. Closing it early closes the connection."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while piece := await self._response.read():
                yield piece
        except tuple(IN_HTTPX_WORDS) as error:
            raise in_httpx_words(error) from error

    async def aclose(self) -> None:
        self._response.release()


def in_httpx_words(error: UpstreamError) -> httpx.TransportError:
    """Our error as one of httpx's."""
    return IN_HTTPX_WORDS[type(error)](error.message)

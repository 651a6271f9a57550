"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache
from time import time
from typing import Any, Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from backends.api import AnyAdapter, Call, Chunk, Probed, RefusesInItsOwnWords, RequestRefused, Stateful, UpstreamFault
from backends.api import Target as Address
from backends.sse import Splitter
from gateway.config import Timeouts
from gateway.core.errors import (
    BadReply,
    CredentialRefused,
    Disconnected,
    GatewayError,
    Rejected,
    Unreachable,
    Unsupported,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)

log = logging.getLogger("trunkline.forward")

IDLE_CONNECTION_SECONDS = 4.0
"""uvicorn (so vLLM) and llama.cpp close an idle connection after 5 s: ours must be gone before."""
ERROR_BODY_LIMIT = 1024 * 1024
MAX_RETRY_AFTER = 120.0
TAIL_SECONDS = 1.0
"""After its terminator a stream has nothing left but the end of the connection's message."""

# What a caught httpx exception means. The most specific class in the exception's MRO decides.
FAILURES: Final[dict[type[Exception], type[UpstreamError]]] = {
    httpx.HTTPError: Unreachable,
    httpx.RequestError: Unreachable,
    httpx.HTTPStatusError: BadReply,
    httpx.TransportError: Unreachable,
    httpx.TimeoutException: UpstreamTimeout,
    httpx.ConnectTimeout: Unreachable,
    httpx.PoolTimeout: Unreachable,
    httpx.ReadTimeout: UpstreamTimeout,
    httpx.WriteTimeout: UpstreamTimeout,
    httpx.NetworkError: Disconnected,
    httpx.ConnectError: Unreachable,
    httpx.ReadError: Disconnected,
    httpx.WriteError: Disconnected,
    httpx.CloseError: Disconnected,
    httpx.ProxyError: Unreachable,
    httpx.UnsupportedProtocol: Unreachable,
    httpx.ProtocolError: BadReply,
    httpx.LocalProtocolError: BadReply,
    httpx.RemoteProtocolError: BadReply,
    httpx.DecodingError: BadReply,
    httpx.TooManyRedirects: BadReply,
    httpx.InvalidURL: Unreachable,
    httpx.CookieConflict: BadReply,
    httpx.StreamError: Disconnected,
}


def failure(error: Exception) -> UpstreamError:
    """The error of ours for one of the HTTP client's."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError | aiohttp.ClientOSError) and not (
        isinstance(cause, aiohttp.ClientConnectorError)
    ):
        return Disconnected(repr(cause))  # httpx-aiohttp calls these a ConnectTimeout, but something had been sent
    for kind in type(error).__mro__:
        if kind in FAILURES:
            return FAILURES[kind](repr(error))
    return BadReply(repr(error))


class Upstream:
    """A target's good answer, not yet read. `upstream_wait` grows by the seconds spent waiting for it."""

    def __init__(
        self, call: Call, adapter: AnyAdapter, response: httpx.Response, deadline: Deadline, answer_limit: int
    ) -> None:
        self._call, self._adapter, self._response = call, adapter, response
        self._deadline, self._answer_limit = deadline, answer_limit
        self.content_type = response.headers.get("content-type", "application/json")

    def chunks(self) -> AsyncIterator[Chunk]:
        """The answer, as it comes: one chunk if it is whole. Raises `UpstreamError`, `Rejected`."""
        return self._events() if self._call.stream else self._whole()

    async def _whole(self) -> AsyncIterator[Chunk]:
        body = await self._read(self._answer_limit)
        try:
            reply = self._adapter.reply(self._call, body)
        except UpstreamFault as fault:
            raise _blame(fault) from fault
        except (ValueError, RecursionError) as error:
            raise BadReply(f"answer not understood: {error}") from error
        yield Chunk(reply.body, usage=reply.usage, finished=True, done=True)

    async def _events(self) -> AsyncIterator[Chunk]:
        if not self.content_type.startswith("text/event-stream"):
            await self._refuse_whole()
        reader = self._adapter.open(self._call) if isinstance(self._adapter, Stateful) else self._adapter
        splitter, finished, done = Splitter(), False, False
        async for block in self._blocks():
            if done:
                break
            try:
                events = splitter.feed(block)
            except ValueError as error:
                raise BadReply(str(error)) from error
            for chunk in merged(self._call, reader, events):
                finished |= chunk.finished
                done |= chunk.done
                yield chunk
        if not done:
            if not finished or splitter.rest.strip():
                raise Disconnected("the stream ended before its end was told")
            yield Chunk(b"data: [DONE]\n\n", done=True)  # some servers close instead

    async def _refuse_whole(self) -> None:
        """A stream was asked for and something else came: an error in a 200, or nonsense."""
        body = await self._read(ERROR_BODY_LIMIT)
        with suppress(ValueError, RecursionError):
            self._adapter.reply(self._call, body)
        raise BadReply(f"a stream was asked for, {self.content_type!r} came")

    async def _read(self, limit: int) -> bytes:
        pieces, size = [], 0
        async for piece in self._blocks():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BadReply(f"the answer is larger than {limit} bytes")
        return b"".join(pieces)

    async def _blocks(self) -> AsyncIterator[bytes]:
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        blocks = aiter(stream)
        while True:
            try:
                block = await anext(blocks)
            except StopAsyncIteration:
                return
            except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
                raise failure(error) from error
            self._deadline.pause()  # a client that reads slowly is not the target's fault
            yield block
            self._deadline.next_piece()


def merged(call: Call, reader: Any, events: Iterable[bytes]) -> Iterator[Chunk]:
    """The chunks of events that arrived together, as one; what came before a failure is yielded before it is raised."""
    data: list[bytes] = []
    tokens, usage, finished, done, comment = 0, None, False, False, True
    trouble: GatewayError | None = None
    try:
        for event in events:
            for chunk in reader.chunk(call, event):
                data.append(chunk.data)
                tokens += chunk.tokens
                usage = chunk.usage or usage
                finished |= chunk.finished
                done |= chunk.done
                comment &= chunk.comment
            if done:
                break
    except UpstreamFault as fault:
        trouble = _blame(fault)
        trouble.__cause__ = fault
    except (ValueError, RecursionError) as error:
        trouble = BadReply(f"event not understood: {error}")
        trouble.__cause__ = error
    if data:
        yield Chunk(b"".join(data), tokens, usage, finished, done, comment)
    if trouble is not None:
        raise trouble


class _Post(httpx.Request):
    """A request whose parts need no more work: httpx would look at each again, at a fifth of what a call costs us.

    `Host` and `Content-Length` are the transport's to add.
    """

    def __init__(self, url: httpx.URL, headers: list[tuple[bytes, bytes]], body: bytes, connect: float) -> None:
        self.method, self.url = "POST", url
        self.headers = httpx.Headers([*headers, (b"accept-encoding", b"identity")])
        self.extensions = {"timeout": {"connect": connect}}
        self.stream = httpx.ByteStream(body)
        self._content = body


class Deadline:
    """The time limit of an attempt: first for the first byte, then for each piece that follows."""

    __slots__ = ("_idle", "_timeout")

    def __init__(self, timeout: asyncio.Timeout, idle: float) -> None:
        self._timeout, self._idle = timeout, idle

    def set(self, seconds: float) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    def pause(self) -> None:
        self._timeout.reschedule(None)

    def next_piece(self) -> None:
        self.set(self._idle)


class Forwarder:
    """Sends calls to targets over pooled connections."""

    def __init__(self, answer_limit: int) -> None:
        self._answer_limit = answer_limit
        self._transport = AiohttpTransport(client=self._session)
        self._url = cache(httpx.URL)  # parsing one takes longer than all else about a request

    @staticmethod
    def _session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_SECONDS, ttl_dns_cache=10)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=("User-Agent", "Accept")
        )

    async def close(self) -> None:
        await self._transport.aclose()

    @asynccontextmanager
    async def forward(
        self, call: Call, address: Address, adapter: AnyAdapter, timeouts: Timeouts, trace: Mapping[str, str]
    ) -> AsyncIterator[Upstream]:
        """One attempt. Entering it gives a good answer to read, leaving it ends the exchange whatever is left of it.

        Raises `Unsupported` and `Rejected` (the caller's fault), `UpstreamError` (the target's).
        """
        try:
            asked = adapter.request(call, address)
        except RequestRefused as refused:
            raise Unsupported(refused.message, param=refused.param) from refused
        headers = [(name.encode(), value.encode()) for name, value in (*asked.headers.items(), *trace.items())]
        request = _Post(self._url(address.url + asked.path), headers, asked.body, timeouts.connect)
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(timeouts.first_byte) as limit:
                deadline = Deadline(limit, timeouts.idle)
                try:
                    response = await self._transport.handle_async_request(request)
                except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
                    raise failure(error) from error
                upstream = Upstream(call, adapter, response, deadline, self._answer_limit)
                if response.status_code != 200:
                    raise await _refusal(call, adapter, response, upstream)
                yield upstream
        except TimeoutError as error:
            raise UpstreamTimeout("no answer, or no next piece of it, in time") from error
        finally:
            if response is not None:
                await response.stream.aclose()  # type: ignore[union-attr] # it is an AsyncByteStream

    async def probe(self, address: Address, adapter: AnyAdapter, timeouts: Timeouts) -> bool:
        """Whether the target's health route answers 200; True for a kind of server that has none."""
        if not isinstance(adapter, Probed):
            return True
        headers = {} if address.api_key is None else {"authorization": f"Bearer {address.api_key}"}
        request = httpx.Request("GET", address.url + adapter.probe_path, headers=headers)
        request.extensions = {"timeout": {"connect": timeouts.connect}}
        try:
            async with asyncio.timeout(timeouts.connect + 3):
                response = await self._transport.handle_async_request(request)
                await response.stream.aclose()  # type: ignore[union-attr]
                return response.status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError):
            return False


async def _refusal(call: Call, adapter: AnyAdapter, response: httpx.Response, upstream: Upstream) -> GatewayError:
    """What an answer that is no 200 means."""
    status = response.status_code
    if status in (401, 403):
        return CredentialRefused(f"status {status}")
    if status in (429, 503):
        return UpstreamBusy(f"status {status}", retry_after=retry_after(response.headers.get("retry-after")))
    if status == 408 or not 400 <= status < 500:
        return UpstreamFailed(f"status {status}")
    body = await upstream._read(ERROR_BODY_LIMIT)
    try:
        said = adapter.refusal(call, status, body) if isinstance(adapter, RefusesInItsOwnWords) else None
    except UpstreamFault as fault:
        return _blame(fault)
    if said is None:
        return Rejected(status if status != 404 else 400, f"The model server refused the call with status {status}.")
    return Rejected(said[0], "", body=said[1])


def _blame(fault: UpstreamFault) -> GatewayError:
    """An error that came inside an answer or stream of status 200."""
    if fault.status in (429, 503):
        return UpstreamBusy(fault.message)
    if 400 <= fault.status < 500 and fault.status not in (401, 403, 408):
        return Rejected(fault.status, fault.message, param=fault.param)
    return UpstreamFailed(fault.message)


def retry_after(header: str | None) -> float | None:
    """Seconds from a `Retry-After` header in either form, at most 120; None if there is none that can be read."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except ValueError:
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER) if seconds == seconds else None

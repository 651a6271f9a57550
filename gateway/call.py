"""The page: one call from authentication to metering, every step by name, in order.

Whatever ends a call ends it here: an error raised by a step, or the cancellation with which the edge answers a client
that leaves. Both unwind the exchange with the target, the lease and the record, in that order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

from msgspec import Struct

from backends.api import Call
from gateway.auth import Caller, Keyring, authorize, may_use
from gateway.core.errors import Forbidden, GatewayError, NoTarget, Rejected, UpstreamError, ended_by
from gateway.limits import Admission, Lease
from gateway.metering import Meter, Record
from gateway.routing import Placement, Routes
from gateway.upstream import Forwarder, Upstream
from gateway.upstream.continuation import Transcript
from gateway.upstream.shadow import Seen, Shadow


class Client(Protocol):
    """The caller's side of the exchange, as the edge provides it."""

    @property
    def call_id(self) -> str:
        """Unique for ever; what the client sees as its request id."""

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's headers, names in lower case."""

    @property
    def source(self) -> str | None:
        """The address it comes from, as far as that is known."""

    @property
    def gone_at(self) -> float | None:
        """When we learned that it had left, by the monotonic clock; None: it has not."""

    @property
    def trace(self) -> Mapping[str, str]:
        """Headers by which the target's logs can be matched with ours."""

    @property
    def explains(self) -> bool:
        """The answer's headers are to tell how its target was picked."""

    @property
    def started(self) -> bool:
        """Something of the answer has left: from here on nothing can be retried or become an error status."""

    async def call(self) -> Call:
        """Read the body; raises `Refused` when it cannot be a call."""

    async def send(self, data: bytes, *, ending: Callable[[], Awaitable[None]] | None = None) -> None:
        """Send a piece of the answer, the first one with the head of the response.

        With `ending` it is the end, the last bytes of which leave when `ending` is done.
        """

    def prepare(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Set the headers that the answer will start with."""


class Parts(Struct, frozen=True):
    """What serving a call takes, put together by the app, anew for each table."""

    keyring: Keyring
    routes: Routes
    admission: Admission
    forwarder: Forwarder
    meter: Meter
    shadow: Shadow


class Exchange(Struct, frozen=True):
    """What is the same for all attempts to answer a call."""

    client: Client
    lease: Lease
    record: Record
    transcript: Transcript | None
    """What the client has of a stream that may go on at another target."""

    async def end(self) -> None:
        """The answer is whole: its slot is free before the client has the last of it."""
        await self.lease.end(self.record.spend())


async def serve(parts: Parts, endpoint: str, client: Client) -> None:
    """Answer one call, or raise the `GatewayError` that says why not."""
    with parts.meter.observe(client.call_id, endpoint, client) as record:
        caller = await parts.keyring.authenticate(client.headers, client.source)  # 401, 403, 429, 503
        record.authenticated(caller.key)
        call = await client.call()  # 400, 408, 413
        record.received_body(call)
        route = parts.routes.find(call.model, lambda *names: may_use(caller.key, *names))  # 404
        record.routed(route.name, route.price)

        async def refresh() -> Caller:
            caller = await parts.keyring.authenticate(client.headers, client.source, fresh=True)
            authorize(caller.key, endpoint, call.model, route.name)
            return caller

        try:
            authorize(caller.key, endpoint, call.model, route.name)  # 403
        except Forbidden:
            caller = await refresh()  # the key may have been given more since it was loaded
        lease = await parts.admission.admit(call, caller, route.name, refresh)  # 400, 429, 503
        try:
            record.admitted(lease.at, lambda: lease.input)
            transcript = Transcript(call) if route.resumes and call.stream else None
            placements = parts.routes.placements(
                route, call, client.headers, caller.key, lease.input, record.spend, explain=client.explains
            )
            async with aclosing(placements):
                await _answer(parts, call, placements, Exchange(client, lease, record, transcript))
            parts.shadow.ended(call, route.name, Seen(*record.seen()))
        except asyncio.CancelledError:
            lease.settle(record.spend())  # nobody waits for the answer
            raise
        finally:
            await lease.end(record.spend())


async def _answer(parts: Parts, call: Call, placements: AsyncIterator[Placement], exchange: Exchange) -> None:
    """Try one target after the other, until one has answered, or what has failed cannot be tried again."""
    failed: GatewayError = NoTarget("No target can take the call now.", retry_after=1)
    resumes = False
    try:
        async for placement in placements:  # waits its turn: 400, 429, 503
            try:
                return await _attempt(parts, call, placement, exchange)
            except UpstreamError as error:
                failed, resumes = error, placement.resumes
                if not (resumes if exchange.client.started else error.retryable):
                    break
    except GatewayError as error:
        if not resumes:
            raise
        raise failed from error  # that its rest could not be asked for is not what broke the stream
    raise failed  # 502, 503, 504


async def _attempt(parts: Parts, call: Call, placement: Placement, exchange: Exchange) -> None:
    """Try one target; tell it and the record how that went."""
    client, lease, record, transcript = exchange.client, exchange.lease, exchange.record, exchange.transcript
    target = placement.target
    record.attempt(target.name, placement.choice)
    try:
        if transcript is not None:
            call = transcript.rest(target.capabilities.resumable, started=client.started)
        async with parts.forwarder.forward(
            call, placement.address, target.capabilities, target.timeouts, client.trace, client.headers
        ) as upstream:
            record.headed()
            content_type = (b"content-type", upstream.content_type.encode("latin-1"))
            client.prepare([content_type, *placement.headers, *lease.headers])
            await _relay(upstream, exchange, placement.first_token)
        placement.answered(record.usage)
    except UpstreamError as error:
        record.failed(error)
        placement.failed(error)
        if transcript is not None and client.started and record.broke_off(transcript.obstacle()):
            placement.resume()
        raise
    except GatewayError as error:
        record.failed(error)
        if isinstance(error, Rejected):
            placement.refused(error)
        raise
    except asyncio.CancelledError as error:
        record.failed(ended_by(error))
        raise
    finally:
        placement.end()
        record.attempted()


async def _relay(upstream: Upstream, exchange: Exchange, first_token: Callable[[], None]) -> None:
    """Pass the answer on, piece by piece, as it comes."""
    client, record, transcript, held = exchange.client, exchange.record, exchange.transcript, b""
    async with aclosing(upstream.chunks()) as chunks:  # type: ignore[type-var] # they are generators
        async for chunk in chunks:
            part = chunk if transcript is None else transcript.take(chunk)
            record.received(len(part.data), part.tokens, part.usage)
            if part.tokens or part.done:
                first_token()
            held += part.data  # comments and openings before the first output wait: they must not promise a 200
            if part.done or (held and (client.started or not (part.comment or part.opening))):
                # A client that has its answer must find its slot free.
                await client.send(held, ending=exchange.end if part.done else None)
                record.sent()
                held = b""

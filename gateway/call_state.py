"""What a call is served with and holds: its client, the gateway's parts, and its state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct

from backends.api import Call
from gateway.answers import Answers, Cached
from gateway.auth import Keyring
from gateway.core.types import KeyRecord
from gateway.limits import Admission, Lease
from gateway.metering import CallRecord, Meter
from gateway.routing import Attempt, Attempts, Routes
from gateway.routing.repair import Repair, Whole
from gateway.routing.responses import Made, Responses
from gateway.routing.watched import AnyExchange, Watched
from gateway.upstream import Exchange, Forwarder
from gateway.upstream.continuation import Transcript
from gateway.upstream.shadow import Shadow


class Client(Protocol):
    """The caller's side of a call, as the server provides it."""

    call_id: str
    """Unique for ever; what the client sees as its request id."""
    headers: dict[bytes, bytes]
    """The request's headers, names in lower case."""
    own_id: str
    """What the client calls the request; empty: it does not say."""
    source: str | None
    """The address it comes from, as far as that is known."""
    gone_at: float | None
    """When we learned that it had left, by the monotonic clock; None: it has not."""
    trace: dict[str, str]
    """Headers by which the target's logs can be matched with ours."""
    explains: bool
    """The answer's headers are to tell how its target was picked."""

    @property
    def started(self) -> bool:
        """Something of the answer has left: from here on nothing can be retried or become an error status."""

    def check(self) -> None:
        """Raise `BadFraming` for a head that a proxy before us may have read in another way."""

    async def call(self, key: KeyRecord, default: str = "") -> Call:
        """Read the body of a call with this key; if it names no model, it asks for the `default`, if there is one.

        Raises `Refused` when it cannot be a call, or the key is sending too much at once.
        """

    def trust_own_id(self) -> None:
        """Have targets log `own_id`, where there is one, instead of `call_id`."""

    def keep_alive(self, seconds: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send a sign of life each so many seconds until the answer begins; its head would have these headers."""

    def prepare(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Set the headers that the answer will start with."""

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer, the first one with the head of the response."""

    async def finish(self, data: bytes, ending: Callable[[], Awaitable[None]]) -> None:
        """Send the end of the answer, the last bytes of which leave when `ending` is done."""


class Parts(Struct, frozen=True):
    """What serving a call takes, put together by the app, anew for each table."""

    keyring: Keyring
    routes: Routes
    admission: Admission
    forwarder: Forwarder
    meter: Meter
    shadow: Shadow
    responses: Responses
    answers: Answers | None = None
    """Those that are kept; None: there is nowhere to keep any."""


class CallState:
    """One call: who asks what, and all that is held for it."""

    __slots__ = (
        "attempts",
        "cached",
        "client",
        "headers",
        "lease",
        "made",
        "record",
        "renames",
        "repair",
        "transcript",
    )

    def __init__(self, client: Client, record: CallRecord) -> None:
        self.client, self.record = client, record
        self.lease: Lease | None = None
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        """What its answer says of limits and of the cache."""
        self.cached: Cached | None = None
        """It may be answered from the cache, or its answer be kept there."""
        self.attempts: Attempts | None = None
        self.made: Made | None = None
        """What remembers where the answer was made, for calls that go on with it."""
        self.repair: Repair | None = None
        """What asks again for an answer that is not the JSON that was asked for."""
        self.renames = False
        """Its answer names the model as the client did."""
        self.transcript: Transcript | None = None
        """What the client has of a stream that may go on at another target."""

    def watched(self, attempt: Attempt, exchange: Exchange | Whole) -> AnyExchange:
        """The answer, copied for the cache, or looked through for what calls can go on with."""
        if self.cached is not None:
            own = not (self.client.started or attempt.fallback or attempt.target.canary)
            fine = self.record.repair in (None, "repaired")
            return Watched(exchange, self.cached.copy(exchange.content_type[1], own=own and fine))
        if self.made is not None:
            return Watched(exchange, self.made.look, partial(self.made.remember, attempt.target.name))
        return exchange

    async def settle(self) -> None:
        """Turn what was reserved into what was spent: a client that has its answer must find its slot free."""
        if self.lease is not None:
            await self.lease.end(self.record.final_usage())

    async def end(self, error: BaseException | None = None) -> None:
        """Give back all that is held, and write the record; `error` is what ended the call, if anything did."""
        spent, lease = self.record.spent or self.record.final_usage(), self.lease
        try:
            if self.attempts is not None:
                self.attempts.close(spent)
            if lease is not None and not lease.ended:
                if isinstance(error, asyncio.CancelledError):
                    lease.settle(spent)  # nobody waits for the answer
                else:
                    await lease.end(spent)
        except BaseException as later:
            error = later
            raise
        finally:
            self.record.close(error)
            if self.cached is not None:
                self.cached.end(good=error is None, usage=self.record.usage)

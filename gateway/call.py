"""The page: one call from authentication to metering, every step by name, in order.

Whatever ends a call ends it here: an error raised by a step, or the cancellation with which the server answers a
client that leaves. What the call holds is given back in `CallState.end`, in one order: target, slot, record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from msgspec import Struct, structs

from backends.api import Call
from backends.asked import NESTED
from gateway.answers import Answers, Cached, Terms
from gateway.auth import Caller, Keyring, authorize, may_use
from gateway.core.errors import (
    Forbidden,
    GatewayError,
    NoTarget,
    Rejected,
    UpstreamError,
    ended_by,
    without_frames,
)
from gateway.core.types import KeyRecord
from gateway.limits import Admission, Lease
from gateway.metering import CallRecord, Meter
from gateway.routing import Attempt, Attempts, Routes
from gateway.routing.attempt import NO_OUTCOME
from gateway.routing.repair import Repair, Whole
from gateway.routing.responses import Made, Responses
from gateway.routing.watched import Watched
from gateway.upstream import Exchange, Forwarder
from gateway.upstream.continuation import Transcript
from gateway.upstream.reading import UNCOUNTED_BYTES
from gateway.upstream.shadow import Seen, Shadow

RESUMABLE: Final = frozenset({"chat/completions", "completions"})
"""Their streams can go on at another target."""


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
        "repairs",
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
        self.repairs = False
        """Its answer is looked at, if it is to be JSON."""
        self.repair: Repair | None = None
        """What asks again for an answer that is not the JSON that was asked for."""
        self.renames = False
        """Its answer names the model as the client did."""
        self.transcript: Transcript | None = None
        """What the client has of a stream that may go on at another target."""

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


async def serve(parts: Parts, endpoint: str, client: Client) -> None:
    """Answer one call, or raise the `GatewayError` that says why not."""
    record = parts.meter.open(client.call_id, endpoint, client)
    state = CallState(client, record)
    try:
        client.check()  # 400
        caller = await parts.keyring.authenticate(client.headers, client.source)  # 401, 403, 429, 503
        record.authenticated(caller.key)
        if caller.key.id in parts.admission.denials:
            caller = await parts.keyring.authenticate(client.headers, client.source, fresh=True)
            parts.admission.deny_again(caller)  # 429
        default = caller.key.default_route or parts.routes.default
        call = asked = await client.call(caller.key, default)  # 400, 408, 413, 429, 503
        record.received_body(call)
        route = parts.routes.find(call.model, lambda *names: may_use(caller.key, *names), call.path or endpoint)  # 404
        record.routed(route.name, route.price)
        state.renames, state.repairs = route.public_model, route.repairs
        if route.trust_request_id:
            client.trust_own_id()

        async def refresh() -> tuple[Caller, Call]:
            nonlocal call, caller
            caller = await parts.keyring.authenticate(client.headers, client.source, fresh=True)
            authorize(caller.key, endpoint, asked.model, route.name)
            call = record.call = route.ruled(asked, caller.key.body)
            return caller, call

        try:
            authorize(caller.key, endpoint, asked.model, route.name)  # 403
        except Forbidden:
            caller, _ = await refresh()  # the key may have been given more since it was loaded
        ruled = route.changes_bodies or caller.key.body is not None or endpoint in NESTED
        if ruled or not route.denied.isdisjoint(asked.body.fields):
            call = record.call = route.ruled(asked, caller.key.body)  # 400
        lease = state.lease = await parts.admission.admit(call, caller, route.name, refresh)  # 400, 429, 503
        record.admitted(lease.at, lease.input)
        state.headers = lease.headers
        if (terms := route.answers) is None or not await _from_cache(parts, state, call, terms, caller.key.tenant):
            if route.keepalive is not None and call.stream:
                client.keep_alive(route.keepalive, state.headers)
            resumes = route.resumes and call.stream and endpoint in RESUMABLE
            state.transcript = Transcript(call) if resumes else None
            only = await _home(parts, state, call, caller.key.tenant) if endpoint == "responses" else ""
            state.attempts = parts.routes.attempts(
                route, call, client.headers, caller.key, lease.input, explain=client.explains, only=only
            )
            await _answer(parts, state, call, state.attempts)
            if parts.shadow.mirrors:
                parts.shadow.ended(call, client.headers, route.name, Seen(*record.seen()))
    except BaseException as error:
        await state.end(error)
        raise
    await state.end()


async def serve_stored(parts: Parts, endpoint: str, client: Client) -> None:
    """Show, delete or stop a response that a server keeps, or raise the `GatewayError` that says why not."""
    record = parts.meter.open(client.call_id, endpoint, client)
    state = CallState(client, record)
    try:
        client.check()  # 400
        caller = await parts.keyring.authenticate(client.headers, client.source)  # 401, 403, 429, 503
        record.authenticated(caller.key)
        asked = await client.call(caller.key)  # 400, 408, 413, 429, 503
        target, model = await parts.responses.stored(asked, caller.key.tenant)  # 404, 503
        call = structs.replace(asked, model=model)
        record.received_body(call)
        route = parts.routes.having(target, model, endpoint)  # 404
        record.routed(route.name, route.price)

        async def refresh() -> tuple[Caller, Call]:
            caller = await parts.keyring.authenticate(client.headers, client.source, fresh=True)
            authorize(caller.key, endpoint, model, route.name)
            return caller, call

        try:
            authorize(caller.key, endpoint, model, route.name)  # 403
        except Forbidden:
            caller, _ = await refresh()
        lease = state.lease = await parts.admission.admit(call, caller, route.name, refresh)  # 400, 429, 503
        record.admitted(lease.at, lease.input)
        state.headers = lease.headers
        state.attempts = parts.routes.attempts(route, call, client.headers, caller.key, lease.input, only=target)
        await _answer(parts, state, call, state.attempts)
        await parts.responses.done(call, caller.key.tenant)
    except BaseException as error:
        await state.end(error)
        raise
    await state.end()


async def _from_cache(parts: Parts, state: CallState, call: Call, terms: Terms, tenant: str) -> bool:
    """Answer the call with what another one was answered, if that was kept; whether it is answered."""
    client = state.client
    if parts.answers is None or client.explains:
        return False
    cached = await parts.answers.look(call, terms, tenant, client)  # 400
    state.record.looked(cached.found)
    if cached.name:
        state.cached = cached
    state.headers = [*state.headers, *cached.headers]
    if (answer := cached.answer) is None:
        return False
    state.record.from_cache()
    client.prepare([(b"content-type", answer.content_type), *state.headers])
    await client.finish(answer.body, state.settle)  # as a stream that comes at once, if it is one
    return True


async def _home(parts: Parts, state: CallState, call: Call, tenant: str) -> str:
    """The target that has the response with which the call goes on; empty: it goes on with none."""
    only = await parts.responses.home(call, tenant)  # 404, 503
    state.made = parts.responses.made(call, tenant)
    return only


async def _answer(parts: Parts, state: CallState, call: Call, attempts: Attempts) -> None:
    """Try one target after the other, until one has answered, or what has failed cannot be tried again."""
    failed: GatewayError | None = None
    outcome = NO_OUTCOME
    if state.repairs:
        state.repair = Repair.of(call, state.record)
    while True:
        try:
            attempt = await attempts.next(outcome)  # waits its turn: 400, 429, 503
        except GatewayError as error:
            if failed is None or not outcome.resumes:
                raise
            raise failed from error  # that its rest could not be asked for is not what broke the stream
        if attempt is None:
            raise failed or NoTarget("No target can take the call now.", retry_after=1)  # 502, 503, 504
        try:
            return await _attempt(parts, state, call, attempt)
        except UpstreamError as error:
            failed, outcome = without_frames(error), attempt.outcome
            again = error.retryable and not call.body.spent
            if not (outcome.resumes if state.client.started else again):
                raise
        except GatewayError as error:
            if failed is None or not outcome.resumes:
                raise
            raise failed from error  # nor is it what the target of a later part says of the call


async def _attempt(parts: Parts, state: CallState, call: Call, attempt: Attempt) -> None:
    """Try one target; tell it and the record how that went."""
    client, record, transcript, target = state.client, state.record, state.transcript, attempt.target
    capabilities = target.endpoints[call.path or call.endpoint]
    headers = state.headers
    exchange: Exchange | Whole | Watched | None = None
    record.attempt_started(target.name, attempt.choice)
    try:
        if transcript is not None:
            call = transcript.rest(capabilities.resumable, started=client.started)
        sent = call, attempt.address, capabilities, target.timeouts, client.trace, client.headers, state.renames
        exchange = await parts.forwarder.send(*sent)
        record.got_headers()
        if state.repair is not None:
            exchange = await state.repair.checked(exchange, partial(parts.forwarder.send, *sent))
            headers = (*headers, *state.repair.headers)
        client.prepare([exchange.content_type, *attempt.headers, *headers])
        if state.cached is not None or state.made is not None:
            exchange = _watched(state, attempt, exchange)
        await _relay(state, attempt, exchange)
        attempt.answered(record.usage)
    except UpstreamError as error:
        record.attempt_failed(error)
        attempt.failed(error)
        if transcript is not None and client.started and record.broke_off(transcript.obstacle()):
            attempt.resume()
        raise
    except GatewayError as error:
        record.attempt_failed(error)
        if isinstance(error, Rejected):
            attempt.refused(error)
        raise
    except asyncio.CancelledError as error:
        record.attempt_failed(ended_by(error))
        raise
    finally:
        if exchange is not None:
            exchange.close()
        attempt.end()
        record.attempt_ended()


def _watched(state: CallState, attempt: Attempt, exchange: Exchange | Whole) -> Exchange | Whole | Watched:
    """The answer, copied for the cache, or looked through for what calls can go on with."""
    if state.cached is not None:
        own = not (state.client.started or attempt.fallback or attempt.target.canary)
        fine = state.record.repair in (None, "repaired")
        return Watched(exchange, state.cached.copy(exchange.content_type[1], own=own and fine))
    if state.made is not None:
        return Watched(exchange, state.made.look, partial(state.made.remember, attempt.target.name))
    return exchange


async def _relay(state: CallState, attempt: Attempt, exchange: Exchange | Whole | Watched) -> None:
    """Pass the answer on, piece by piece, as it comes."""
    client, record, transcript, held = state.client, state.record, state.transcript, bytearray()
    begun = done = False
    while not done:
        chunk = await exchange.next()
        if transcript is not None:
            chunk = transcript.take(chunk)
        record.received(len(chunk.data), chunk.tokens, chunk.usage, chunk.text)
        done = chunk.done
        if not begun and (chunk.tokens or done):
            begun = True
            attempt.first_token()
        data = chunk.data
        if (chunk.comment or chunk.opening) and not (done or client.started):  # they must not promise a 200
            held += data
            if len(held) > UNCOUNTED_BYTES:
                exchange.keep(len(held))  # 502, 503
            continue
        if held:
            data = bytes(held + data)
            held.clear()
            if exchange.kept:
                exchange.keep(0)
        if done:
            await client.finish(data, state.settle)
            record.sent()
        elif data:
            await client.send(data)
            record.sent()

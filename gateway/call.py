"""The page: one call from authentication to metering, every step by name, in order.

Whatever ends a call ends it here: an error raised by a step, or the cancellation with which the server answers a
client that leaves. What the call holds is given back in `CallState.end`, in one order: target, slot, record.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from backends.api import Call
from backends.asked import NESTED
from gateway.answers import Terms
from gateway.auth import Caller, authorize, may_use
from gateway.call_state import CallState, Client, Parts
from gateway.core.errors import (
    Forbidden,
    GatewayError,
    NoTarget,
    Rejected,
    UpstreamError,
    ended_by,
    without_frames,
)
from gateway.routing import Attempt, Attempts, Route
from gateway.routing.attempt import NO_OUTCOME
from gateway.routing.repair import Repair
from gateway.routing.watched import AnyExchange
from gateway.upstream.continuation import Transcript
from gateway.upstream.reading import UNCOUNTED_BYTES
from gateway.upstream.shadow import Seen

RESUMABLE: Final = frozenset({"chat/completions", "completions"})
"""Their streams can go on at another target."""


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
        state.renames = route.public_model
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
            if route.assists:
                _assist(state, route, call)
            only = await _home(parts, state, call, caller.key.tenant) if endpoint == "responses" else ""
            state.attempts = parts.routes.attempts(
                route, call, client.headers, caller.key, lease.input, explain=client.explains, only=only
            )
            await answer(parts, state, call, state.attempts)
            if parts.shadow.mirrors:
                parts.shadow.ended(call, client.headers, route.name, Seen(*record.seen()))
    except BaseException as error:
        await state.end(error)
        raise
    await state.end()


def _assist(state: CallState, route: Route, call: Call) -> None:
    """What the route does for its calls beside passing them on: signs of life, streams that go on, second tries."""
    if route.keepalive is not None and call.stream:
        state.client.keep_alive(route.keepalive, state.headers)
    if route.resumes and call.stream and call.endpoint in RESUMABLE:
        state.transcript = Transcript(call)
    if route.repairs:
        state.repair = Repair.of(call, state.record)


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


async def answer(parts: Parts, state: CallState, call: Call, attempts: Attempts) -> None:
    """Try one target after the other, until one has answered, or what has failed cannot be tried again."""
    failed: GatewayError | None = None
    outcome = NO_OUTCOME
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
    exchange: AnyExchange | None = None
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
            exchange = state.watched(attempt, exchange)
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


async def _relay(state: CallState, attempt: Attempt, exchange: AnyExchange) -> None:
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

"""A call for a response that a server keeps: it goes where that was made."""

from __future__ import annotations

from msgspec import structs

from backends.api import Call
from gateway.auth import Caller, authorize
from gateway.call import answer
from gateway.call_state import CallState, Client, Parts
from gateway.core.errors import Forbidden


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
        await answer(parts, state, call, state.attempts)
        await parts.responses.done(call, caller.key.tenant)
    except BaseException as error:
        await state.end(error)
        raise
    await state.end()

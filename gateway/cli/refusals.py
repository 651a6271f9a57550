"""What a caller would be told instead of an answer, looked for in the order in which a gateway does."""

from __future__ import annotations

import time

from backends.api import Call, RequestRefused
from gateway.auth import authorize, parse
from gateway.auth.networks import within
from gateway.auth.pepper import Peppers
from gateway.auth.rights import is_good
from gateway.auth.token import KEY
from gateway.config import Settings
from gateway.core.errors import ContextTooLong, GatewayError, NoTarget, SourceNotAllowed, Unauthenticated
from gateway.core.types import KeyRecord
from gateway.routing import Route, Routes
from gateway.routing.policies.api import Prompt
from gateway.store import Store
from gateway.targets import Target

ANYBODY = KeyRecord(id="", name="anybody", secrets=(), created=0.0)
"""A key that may do all."""


async def key_of(store: Store, settings: Settings, text: str | None, source: str | None) -> tuple[KeyRecord, str]:
    """The key of this id or token, and why its calls from `source` are refused; nothing if they are not.

    Raises `ValueError` where there is no such key, and `StoreDown`.
    """
    if text is None:
        return ANYBODY, ""
    secret: str | None = None
    if text.startswith(KEY + "_"):
        try:
            text, secret = parse(text)
        except ValueError:
            raise ValueError("this is no key, its calls are refused with 401: its checksum is wrong") from None
    record = await store.records.get(KeyRecord, text)
    if record is None or record.deleted is not None:
        raise ValueError("there is no such key, its calls are refused with 401; `trunkline keys list` shows all")
    if why := _unauthenticated(settings, record, secret):
        return record, f"{Unauthenticated.status}: {why}"
    if source is not None and record.sources and not within(source, record.sources):
        return record, f"{SourceNotAllowed.status}: This key may not be used from this address."
    return record, ""


def _unauthenticated(settings: Settings, record: KeyRecord, secret: str | None) -> str:
    """Why it opens nothing."""
    now = time.time()
    if not is_good(record, now):
        return f"the key is {'revoked' if record.revoked is not None else 'expired'}"
    if secret is None:
        return ""
    used = Peppers(settings.pepper_versions()).find(record.secrets, secret)
    if used is None:
        return "the secret is not the key's, or hashed under a pepper that TRUNKLINE_PEPPERS does not have here"
    if used.not_after is not None and used.not_after <= now:
        return "the secret has expired"
    return ""


def call_of(key: KeyRecord, call: Call, route: Route) -> tuple[Call, str]:
    """The call under the rules for bodies, and why it is refused wherever its targets are."""
    try:
        authorize(key, call.endpoint, call.model, route.name)
        return route.ruled(call, key.body), ""
    except GatewayError as error:
        return call, told(error)


def nowhere(routes: Routes, route: Route, prompt: Prompt) -> str:
    """What a call is told that no target can take now; nothing if it waits for room, or is held."""
    if routes.waits(route, prompt):
        return ""
    if route.hold is not None and True in [each.waits_for(prompt) for each in routes.chain(route)]:
        return ""
    try:
        for each in reversed([*routes.chain(route)]):
            each.chooser.fitted(prompt)
    except ContextTooLong as error:
        return told(error)
    return f"{NoTarget.status}: no target of {route.name!r} can take the call now"


def cannot(call: Call, target: Target) -> str:
    """Why the server of the picked target cannot do what the call asks; nothing if it can."""
    try:
        target.endpoints[call.endpoint].adapter.request(call, target.address)
    except RequestRefused as refused:
        return f"400: {refused.message}"
    return ""


def told(error: GatewayError) -> str:
    """Status and words."""
    return f"{error.status}: {error.message}"

"""Which target has made a response that was kept there: calls that go on with it must go where it is."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from backends.api import Call
from backends.body import Malformed
from gateway.core.errors import BadRequest, NoResponse, NotStored, StoreUnavailable
from gateway.store import Homes, StoreDown

log = logging.getLogger("trunkline.routing")

FIELD: Final = "previous_response_id"
KEPT_SECONDS: Final = 24 * 3600
"""How long it is remembered who has made a response. Engines keep them in memory."""
MOST_ID: Final = 128
BETWEEN: Final = "\n"
"""What stands between a target's name and that of the model that its client asked for."""
_ID = re.compile(rb'"id"\s*:\s*("resp_[A-Za-z0-9_-]{1,122}")')
"""The first id in an answer is that of the response."""


class Responses:
    """Remembers, for one tenant at a time, who has made which response."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes

    async def home(self, call: Call, tenant: str) -> str:
        """The target that has the response with which a call goes on; empty: it goes on with none.

        Raises `NoResponse`, `BadRequest` for what is no id, `StoreUnavailable`.
        """
        try:
            wanted = call.body.get(FIELD, str, "")
        except Malformed as error:
            raise BadRequest(f"{error}", param=FIELD) from None
        if not wanted:
            return ""
        home = await self._recall(tenant, wanted)
        if home is None:
            raise NoResponse(
                f"The response {wanted[:MOST_ID]!r} was not found: it was made without 'store': true, or too long "
                "ago. Send the whole conversation.",
                param=FIELD,
            )
        return home[0]

    async def stored(self, call: Call, tenant: str) -> tuple[str, str]:
        """The target that has the response that a call is about, and the model by which it was asked for.

        Raises `NotStored`, `StoreUnavailable`.
        """
        wanted = stored_id(call)
        home = await self._recall(tenant, wanted)
        if home is None:
            raise NotStored(f"Response with id '{wanted[:MOST_ID]}' not found.")
        return home

    async def _recall(self, tenant: str, wanted: str) -> tuple[str, str] | None:
        try:
            home = await self._homes.recall(tenant, wanted) if len(wanted) <= MOST_ID else None
        except StoreDown as error:
            raise StoreUnavailable("Who has the response cannot be looked up at the moment.", retry_after=1) from error
        if home is None:
            return None
        target, _, model = home.partition(BETWEEN)
        return target, model

    async def done(self, call: Call, tenant: str) -> None:
        """What was asked of a stored response is done: one that was deleted is known no longer. What cannot be
        forgotten is forgotten by itself, and its server does not have it any more."""
        if call.method != "DELETE":
            return
        try:
            await self._homes.forget(tenant, stored_id(call))
        except StoreDown as error:
            log.warning("a deleted response is not forgotten: %s", error)

    def made(self, call: Call, tenant: str) -> Made | None:
        """What remembers the response to a call; None: it is not to be kept."""
        kept = bytes(call.body.fields.get("store", b"")) == b"true"
        return Made(self._homes, tenant, call.model) if kept else None


def stored_id(call: Call) -> str:
    """The id of the response that a call for one is about."""
    return re.split("[/?]", call.item, maxsplit=1)[0]


class Made:
    """A response that is being made."""

    def __init__(self, homes: Homes, tenant: str, model: str) -> None:
        self._homes, self._tenant, self._model = homes, tenant, model
        self._id: str | None = None

    def look(self, data: bytes) -> None:
        """A piece of the answer has come."""
        if self._id is None and (found := _ID.search(data)) is not None:
            self._id = json.loads(found[1])

    async def remember(self, target: str) -> None:
        """The answer is whole. That this cannot be remembered is nothing for its client."""
        if self._id is None:
            return
        try:
            home = f"{target}{BETWEEN}{self._model}"
            await self._homes.remember(self._tenant, self._id, home, KEPT_SECONDS)
        except StoreDown as error:
            log.warning("the target of a response is not remembered: %s", error)

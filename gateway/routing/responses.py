"""Which target has made a response that was kept there: calls that go on with it must go where it is."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from backends.api import Call
from backends.body import Malformed
from gateway.core.errors import BadRequest, NoResponse, StoreUnavailable
from gateway.store import Homes, StoreDown

log = logging.getLogger("trunkline.routing")

FIELD: Final = "previous_response_id"
KEPT_SECONDS: Final = 24 * 3600
"""How long it is remembered who has made a response. Engines keep them in memory."""
MOST_ID: Final = 128
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
        try:
            home = await self._homes.recall(tenant, wanted) if len(wanted) <= MOST_ID else None
        except StoreDown as error:
            raise StoreUnavailable("Who has the response cannot be looked up at the moment.", retry_after=1) from error
        if home is None:
            raise NoResponse(
                f"The response {wanted[:MOST_ID]!r} was not found: it was made without 'store': true, or too long "
                "ago. Send the whole conversation.",
                param=FIELD,
            )
        return home

    def made(self, call: Call, tenant: str) -> Made | None:
        """What remembers the response to a call; None: it is not to be kept."""
        return Made(self._homes, tenant) if bytes(call.body.fields.get("store", b"")) == b"true" else None


class Made:
    """A response that is being made."""

    def __init__(self, homes: Homes, tenant: str) -> None:
        self._homes, self._tenant = homes, tenant
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
            await self._homes.remember(self._tenant, self._id, target, KEPT_SECONDS)
        except StoreDown as error:
            log.warning("the target of a response is not remembered: %s", error)

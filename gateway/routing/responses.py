"""Which target has made a response that was kept there: calls that go on with it must go where it is."""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from backends.api import Call, Chunk
from backends.body import Malformed
from gateway.core.errors import BadRequest, NoResponse, StoreUnavailable
from gateway.routing.repair import Whole
from gateway.store import Homes, StoreDown
from gateway.upstream import Exchange

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

    def watch(self, exchange: Exchange | Whole, target: str) -> Watched:
        """The same answer, of this target, seen on its way."""
        return Watched(exchange, self, target)

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


class Watched:
    """An exchange whose response is remembered before its client has all of it."""

    def __init__(self, exchange: Exchange | Whole, made: Made, target: str) -> None:
        self._exchange, self._made, self._target = exchange, made, target
        self.content_type = exchange.content_type

    async def next(self) -> Chunk:
        """As the exchange's."""
        chunk = await self._exchange.next()
        self._made.look(chunk.data)
        if chunk.done:
            await self._made.remember(self._target)
        return chunk

    @property
    def kept(self) -> int:
        """As the exchange's."""
        return self._exchange.kept

    def keep(self, size: int) -> None:
        """As the exchange's."""
        self._exchange.keep(size)

    def close(self) -> None:
        """As the exchange's."""
        self._exchange.close()

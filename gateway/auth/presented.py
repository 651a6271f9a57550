"""From the headers of a call to the record of its key, or to the one answer for all that is wrong with a key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Generic

from gateway.auth.cache import STALE_SECONDS, Cache
from gateway.auth.pepper import Peppers
from gateway.auth.rehash import K, Rehash
from gateway.auth.throttle import Throttle
from gateway.auth.token import KEY, parse
from gateway.core.clock import Clock
from gateway.core.errors import StoreUnavailable, Unauthenticated
from gateway.core.types import Secret
from gateway.store import Records, StoreDown

CARRIERS: Final = (b"authorization", b"x-api-key", b"api-key")
"""Headers that a key may stand in, the first of them as `Bearer`: OpenAI's clients, Anthropic's, Azure's."""


def presented(headers: Mapping[bytes, bytes], prefix: str = KEY) -> bytes:
    """The key that a call came with: what looks like one of this kind, else whatever stands first; empty: nothing.

    Some clients send a word of their own as `Bearer` beside the key that counts.
    """
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    sent = [bearer.strip() if scheme.lower() == b"bearer" else b""]
    sent += [headers[name].strip() for name in CARRIERS[1:] if name in headers]
    like = prefix.encode() + b"_"
    return next((each for each in sent if each.startswith(like)), next(filter(None, sent), b""))


class Authenticator(Generic[K]):
    """Tells whose a token is, for one kind of key. `stale` is how long keys are known while the store is down, in
    seconds."""

    def __init__(
        self,
        store: Records,
        kind: type[K],
        peppers: Mapping[int, bytes],
        clock: Clock,
        throttle: Throttle,
        *,
        prefix: str = KEY,
        stale: float = STALE_SECONDS,
    ) -> None:
        self._peppers, self._clock, self._throttle, self._prefix = Peppers(peppers), clock, throttle, prefix
        self.cache: Cache[K] = Cache(store, kind, clock, stale=stale)
        self.rehash: Rehash[K] = Rehash(store, self._peppers, clock, self.cache)

    async def identify(self, headers: Mapping[bytes, bytes], source: str | None, *, fresh: bool = False) -> K:
        """The key a call came with, valid now; raises as `verify`."""
        return (await self.verify(headers, source, fresh=fresh))[0]

    async def verify(
        self, headers: Mapping[bytes, bytes], source: str | None, *, fresh: bool = False
    ) -> tuple[K, float]:
        """The key a call came with, valid now, and until when it can be, in seconds since the epoch; 0: not remembered.

        Raises `Unauthenticated`; `Throttled` for a key that is not in memory, when `source` has sent too many wrong
        ones; `StoreUnavailable` for one that is not in memory, when the store is down.
        """
        id, secret = self._parse(headers, source)
        record = self.cache.peek(id)
        used = self._peppers.find(() if record is None else record.secrets, secret)
        try:
            if record is None or used is None:
                record, used = await self._look_up(id, secret, source, fresh=fresh or record is not None)
            elif (current := await self.cache.get(id, fresh=fresh)) is not record:
                record, used = self._still(current, secret, source)
        except StoreDown as error:
            raise StoreUnavailable("Keys cannot be checked at the moment; try again.", retry_after=1) from error
        until = self._check(record, used)
        if used.pepper < self._peppers.newest:
            self.rehash.offer(record, used, secret)
            until = 0.0
        return record, until

    async def close(self) -> None:
        """End what goes on in the background."""
        await self.rehash.close()
        await self.cache.close()

    def unknown(self) -> Unauthenticated:
        """The one answer, naming the kind of key that is wanted."""
        if self._prefix == KEY:
            return Unauthenticated()
        return Unauthenticated(f"an admin key as 'Authorization: Bearer {self._prefix}_...'")

    def _parse(self, headers: Mapping[bytes, bytes], source: str | None) -> tuple[str, str]:
        sent = presented(headers, self._prefix)
        try:
            return parse(sent.decode("ascii"), self._prefix)
        except ValueError:
            if sent:  # without a key, nothing was tried
                self._throttle.failed(source)
            raise self.unknown() from None

    async def _look_up(self, id: str, secret: str, source: str | None, *, fresh: bool) -> tuple[K, Secret]:
        """Ask the store about a key that memory does not vouch for; it may be new, or have been given a new secret."""
        turn, failed = await self._throttle.enter(source), False
        try:
            record = await self.cache.get(id, fresh=fresh)
            used = self._peppers.find(() if record is None else record.secrets, secret)
            if record is None or used is None:
                failed = True
                raise self.unknown()
            return record, used
        finally:
            self._throttle.leave(turn, failed=failed)

    def _still(self, record: K | None, secret: str, source: str | None) -> tuple[K, Secret]:
        """A key that memory vouched for, in its new record."""
        used = self._peppers.find(() if record is None else record.secrets, secret)
        if record is None or used is None:
            self._throttle.failed(source, known=True)
            raise self.unknown()
        return record, used

    def _check(self, record: K, used: Secret) -> float:
        """When the key and its secret expire. Raises `Unauthenticated` for what has, or is revoked."""
        until = min(end for end in (used.not_after, record.expires, math.inf) if end is not None)
        if record.revoked is not None or until <= self._clock.now():
            raise self.unknown()
        return until

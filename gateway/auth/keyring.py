"""Who calls: the virtual key and its tenant, from memory where they can be, from the store where they must be."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from gateway.auth.cache import Cache
from gateway.auth.networks import within
from gateway.auth.presented import CARRIERS, Authenticator
from gateway.auth.throttle import Throttle
from gateway.core.clock import Clock
from gateway.core.errors import SourceNotAllowed, StoreUnavailable
from gateway.core.types import Caller, KeyRecord, Tenant
from gateway.store import Records, StoreDown

MOST_VERIFIED: Final = 10_000
"""Tokens that are remembered."""
SURE_SECONDS: Final = 0.1
"""For so long nobody asks again whether memory still vouches for a record of which no change was heard."""


class _Verified(Struct):
    """A token that was found to be good, for as long as memory vouches for the records it was found with."""

    key: KeyRecord
    until: float
    """Seconds since the epoch; then the secret or the key has expired."""
    caller: Caller
    changes: int = -1
    """Of memory, when it was asked."""
    sure_until: float = 0.0
    """By the monotonic clock."""


class Keyring:
    """The virtual keys and tenants that this gateway knows."""

    def __init__(
        self, store: Records, peppers: Mapping[int, bytes], clock: Clock, throttle: Throttle | None = None
    ) -> None:
        self._authenticator = Authenticator(store, KeyRecord, peppers, clock, throttle or Throttle(clock))
        self._clock = clock
        self._verified: dict[bytes, _Verified] = {}
        """By a digest of the headers that may hold a token: secrets do not lie about in memory."""
        self._digest_key = secrets.token_bytes(32)
        self._tenants = Cache(store, Tenant, clock, absent=True)
        store.watch(self._changed)

    async def open(self) -> None:
        """Start to re-hash keys under the newest pepper as they are used."""
        self._authenticator.rehash.open()

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._authenticator.close()
        await self._tenants.close()

    async def authenticate(self, headers: Mapping[bytes, bytes], source: str | None, *, fresh: bool = False) -> Caller:
        """Who a call from the address `source` is from; None is an unknown address.

        Raises `Unauthenticated` (401), `SourceNotAllowed` (403), `Throttled` (429) for a key that is not in memory when
        its source has sent too many wrong ones, and `StoreUnavailable` (503) for one that is not in memory when the
        store is down. `fresh` asks the store in any case: for calls that pass no admission, where nothing else would
        notice a change, and for those whose admission has noticed one.
        """
        presented = b"\n".join([headers.get(name, b"") for name in CARRIERS])
        digest = blake2b(presented, digest_size=16, key=self._digest_key).digest()
        if not fresh and (known := self._verified.get(digest)) is not None:
            changes = self._authenticator.cache.changes + self._tenants.changes
            if known.changes == changes and self._clock.monotonic() < known.sure_until:
                return known.caller
            if self._is_vouched_for(known):
                return known.caller
            del self._verified[digest]
        caller, until = await self._identified(headers, source, fresh=fresh)
        if not caller.key.sources and until:
            while len(self._verified) >= MOST_VERIFIED:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = _Verified(caller.key, until, caller)
        return caller

    async def find(self, key_id: str, source: str | None, *, fresh: bool = False) -> Caller:
        """Whose key this is, for what its client has left with us and is not here to show a token for.

        Raises as `authenticate`.
        """
        try:
            key = await self._authenticator.cache.get(key_id, fresh=fresh)
            if key is None or key.revoked is not None or (key.expires or math.inf) <= self._clock.now():
                raise self._authenticator.unknown()
            if key.sources and not within(source, key.sources):
                raise SourceNotAllowed("This key may not be used from this address.")
            return Caller(key, await self._tenants.get(key.tenant, fresh=fresh))
        except StoreDown as error:
            raise StoreUnavailable("Keys cannot be checked at the moment; try again.", retry_after=1) from error

    async def _identified(
        self, headers: Mapping[bytes, bytes], source: str | None, *, fresh: bool
    ) -> tuple[Caller, float]:
        """As `authenticate`; also until when the token is good, 0 where each call must look again."""
        key, until = await self._authenticator.verify(headers, source, fresh=fresh)
        if key.sources and not within(source, key.sources):
            if not fresh:  # the key may have been given another network since it was loaded
                return await self._identified(headers, source, fresh=True)
            raise SourceNotAllowed("This key may not be used from this address.")
        try:
            tenant = await self._tenants.get(key.tenant, fresh=fresh)
        except StoreDown as error:
            raise StoreUnavailable("Keys cannot be checked at the moment; try again.", retry_after=1) from error
        return Caller(key, tenant), until

    def _is_vouched_for(self, known: _Verified) -> bool:
        """Whether memory knows the token's records as they were, and it has not expired."""
        held, tenant_held = self._authenticator.cache.current(known.key.id), self._tenants.current(known.key.tenant)
        left = known.until - self._clock.now()
        if held is None or held.record is not known.key or left <= 0:
            return False
        if tenant_held is None or tenant_held.record is not known.caller.tenant:
            return False
        known.changes = self._authenticator.cache.changes + self._tenants.changes
        known.sure_until = self._clock.monotonic() + min(SURE_SECONDS, left)
        return True

    def _changed(self, name: str | None) -> None:
        self._authenticator.cache.changed(name)
        self._tenants.changed(name)

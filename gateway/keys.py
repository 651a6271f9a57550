"""Virtual keys: how they look, how they are stored, and who may come in with one."""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from gateway.config.names import matches
from gateway.core.clock import Clock
from gateway.core.errors import Forbidden, StoreUnavailable, Unauthenticated
from gateway.core.types import KeyRecord, Limit, Secret
from gateway.store import KeyConflict, Store, StoreDown

PREFIX: Final = "tl"
BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN = re.compile(r"tl_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_NOBODY = Secret(digest="0" * 64)

FRESH_SECONDS = 60.0
"""How long a record is used without asking the store; admission compares its version on every call all the same."""
STALE_SECONDS = 300.0
"""How long a record is used while the store is down."""
MAX_CACHED = 10_000


def mint() -> tuple[str, str]:
    """A new key id and its secret token, as the client will send it."""
    key_id = _random(12)
    return key_id, token(key_id, _random(43))


def token(key_id: str, secret: str) -> str:
    """`tl_<id>_<secret><crc>`: the checksum tells a mistyped key from a wrong one without any look-up."""
    text = f"{PREFIX}_{key_id}_{secret}"
    return text + _checksum(text)


def parse(presented: str) -> tuple[str, str]:
    """The key id and secret of a token; `ValueError` if it cannot be one."""
    match = _TOKEN.fullmatch(presented)
    if match is None or _checksum(presented[:-6]) != match[3]:
        raise ValueError("not a virtual key")
    return match[1], match[2]


def digest(secret: str, pepper: bytes) -> str:
    """What is stored of a secret. A fast hash suffices: the secret has 256 random bits."""
    return hmac.digest(pepper, secret.encode(), "sha256").hex()


def _random(length: int) -> str:
    return "".join(secrets.choice(BASE62) for _ in range(length))


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return digits


def may_use(record: KeyRecord, *names: str) -> bool:
    """Whether one of these names of a model is among those the key may use."""
    return any(matches(glob, name) for glob in record.models for name in names)


class Keyring:
    """Tells who a token belongs to, from memory where it can, from the store where it must."""

    def __init__(self, store: Store, peppers: Mapping[int, bytes], clock: Clock) -> None:
        self._store, self._peppers, self._clock = store, peppers, clock
        self._cache: dict[str, tuple[float, KeyRecord]] = {}

    async def authenticate(self, headers: Mapping[bytes, bytes], *, fresh: bool = False) -> KeyRecord:
        """The key that a call came with. Raises `Unauthenticated`, or `StoreUnavailable` for a key not in memory.

        `fresh` asks the store in any case: for calls that pass no admission, where nothing else would notice a change
        of the key, and for those whose admission has noticed one.
        """
        key_id, secret = _presented(headers)
        remembered = key_id in self._cache
        record = await self._record(key_id, fresh=fresh)
        now = self._clock.now()
        held = self._holds(record, secret, now)
        if not held and remembered and not fresh:
            record = await self._record(key_id, fresh=True)  # the key may have been given another secret
            held = self._holds(record, secret, now)
        if record is None or not held:
            raise Unauthenticated
        return self._valid(record, now)

    async def _record(self, key_id: str, *, fresh: bool) -> KeyRecord | None:
        now = self._clock.monotonic()
        loaded, record = self._cache.get(key_id, (0.0, None))
        if record is not None and now - loaded < FRESH_SECONDS and not fresh:
            return record
        try:
            record = await self._store.key(key_id)
        except StoreDown as error:
            if record is not None and now - loaded < STALE_SECONDS:
                return record
            raise StoreUnavailable("Keys cannot be checked at the moment; try again.", retry_after=1) from error
        if record is None:
            self._cache.pop(key_id, None)
        else:
            if len(self._cache) >= MAX_CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key_id] = (now, record)
        return record

    def _holds(self, record: KeyRecord | None, secret: str, now: float) -> bool:
        """Compare with every stored secret, or with one that nobody has: the same work for an unknown key."""
        held = False
        for stored in record.secrets if record is not None else (_NOBODY,):
            presented = digest(secret, self._peppers.get(stored.pepper, b"")).encode()
            equal = hmac.compare_digest(presented, stored.digest.encode())
            held |= equal and (stored.not_after is None or now < stored.not_after)
        return held

    def _valid(self, record: KeyRecord, now: float) -> KeyRecord:
        if record.revoked is not None or (record.expires is not None and record.expires <= now):
            raise Unauthenticated
        return record


def _presented(headers: Mapping[bytes, bytes]) -> tuple[str, str]:
    authorization = headers.get(b"authorization", b"")
    scheme, _, presented = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        presented = headers.get(b"x-api-key", b"")
    try:
        return parse(presented.strip().decode("ascii"))
    except ValueError:
        raise Unauthenticated from None


def authorize(record: KeyRecord, model: str, route: str) -> None:
    """Raise `Forbidden` unless the key may use the model, asked for by alias or by the route's own name."""
    if not may_use(record, model, route):
        raise Forbidden(f"This key may not use the model {model!r}.", param="model")


class Registrar:
    """Creates and changes keys, for the command line and the admin interface."""

    def __init__(self, store: Store, peppers: Mapping[int, bytes], clock: Clock) -> None:
        self._store, self._peppers, self._clock = store, peppers, clock

    async def create(
        self,
        name: str,
        *,
        tenant: str = "default",
        models: Sequence[str] = ("*",),
        limit: Limit | None = None,
        lifetime: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key; returns its record and the token, which is not kept anywhere."""
        key_id, presented = mint()
        now = self._clock.now()
        record = KeyRecord(
            id=key_id,
            name=name,
            tenant=tenant,
            models=tuple(models),
            limit=limit or Limit(),
            created=now,
            expires=None if lifetime is None else now + lifetime,
            secrets=(self._stored(presented),),
        )
        await self._store.put_key(record)
        return record, presented

    async def rotate(self, key_id: str, overlap: float) -> tuple[KeyRecord, str]:
        """Give a key a second secret; the first stays valid for `overlap` seconds. Raises `KeyError`, `ValueError`."""
        now = self._clock.now()
        presented = token(key_id, _random(43))

        def change(record: KeyRecord) -> KeyRecord:
            if record.revoked is not None:
                raise ValueError(f"key {key_id} is revoked")
            newest = record.secrets[-1]
            until = now + overlap if newest.not_after is None else min(newest.not_after, now + overlap)
            old = msgspec.structs.replace(newest, not_after=until)
            return msgspec.structs.replace(record, secrets=(old, self._stored(presented)))

        return await self._change(key_id, change), presented

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key for good; the next call with it is refused. Raises `KeyError`."""
        now = self._clock.now()
        return await self._change(
            key_id, lambda record: record if record.revoked else msgspec.structs.replace(record, revoked=now)
        )

    async def _change(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        while True:
            stored = await self._store.key(key_id)
            if stored is None:
                raise KeyError(key_id)
            changed = change(stored)
            if changed is stored:
                return stored
            changed = msgspec.structs.replace(changed, version=stored.version + 1)
            try:
                await self._store.put_key(changed)
            except KeyConflict:
                continue  # somebody else was faster: decide again on what they wrote
            return changed

    def _stored(self, presented: str) -> Secret:
        pepper = max(self._peppers)
        return Secret(digest=digest(parse(presented)[1], self._peppers[pepper]), pepper=pepper)

"""Creating and changing keys and tenants, and ordering targets about, for the command line and the admin interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from gateway.admin import target_orders, validation
from gateway.admin.audited import Changes, expect, is_deleted
from gateway.auth.pepper import Peppers
from gateway.auth.token import ADMIN, SECRET_LENGTH, mint, parse, random, token
from gateway.core.batches import Storage
from gateway.core.body_rules import BodyRules
from gateway.core.clock import Clock
from gateway.core.errors import Unauthenticated
from gateway.core.types import AdminKey, KeyRecord, Limit, OrderState, TargetOrder, Tenant
from gateway.store import Conflict, Records

_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "name": validation.name,
    "tenant": validation.tenant,
    "models": validation.models,
    "endpoints": validation.endpoints,
    "default_route": validation.default_route,
    "user_header": validation.user_header,
    "limit": validation.limit,
    "model_limits": validation.model_limits,
    "priority": validation.priority,
    "labels": validation.labels,
    "sources": validation.sources,
    "body": validation.body,
}
CHANGEABLE: Final = (*_CHECKS, "lifetime")
"""What `Registrar.update` takes."""
FIRST_ADMIN: Final = "0FirstAdmin0"
"""The id of the one-time token: with the same id everywhere, of many gateways that start only one makes it."""


class Registrar:
    """Writes records, each change with its entry in the audit log.

    `actor` is who does it: `admin:<id>`, `cli:<user>`, `bootstrap`. Methods raise `ValueError` for what a record may
    not say, `KeyError` for an id that is not there, `StoreDown`. A change that somebody else was faster with is decided
    again on what they wrote.
    """

    def __init__(self, store: Records, peppers: Mapping[int, bytes], clock: Clock, actor: str) -> None:
        self._store, self._peppers, self._clock, self._actor = store, Peppers(peppers), clock, actor
        self._changes = Changes(store, clock, actor)

    async def create(
        self,
        name: str,
        *,
        tenant: str = "default",
        models: Sequence[str] = ("*",),
        endpoints: Sequence[str] = ("*",),
        default_route: str = "",
        user_header: str = "",
        limit: Limit | None = None,
        model_limits: Mapping[str, Limit] | None = None,
        priority: str = "normal",
        labels: Mapping[str, str] | None = None,
        sources: Sequence[str] = (),
        body: BodyRules | None = None,
        lifetime: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key, valid for `lifetime` seconds; returns its record and the token, which is not kept anywhere."""
        given = {
            "name": name,
            "tenant": tenant,
            "models": models,
            "endpoints": endpoints,
            "default_route": default_route,
            "user_header": user_header,
            "limit": limit or Limit(),
            "model_limits": model_limits or {},
            "priority": priority,
            "labels": labels or {},
            "sources": sources,
            "body": body,
            "lifetime": lifetime,
        }
        id, presented = mint()
        secrets = (self._peppers.hash(parse(presented)[1]),)
        record = KeyRecord(id=id, secrets=secrets, created=self._clock.now(), **self._checked(given))
        await self._changes.put("create", None, record)
        return record, presented

    async def update(self, key_id: str, *, version: int | None = None, **changes: Any) -> KeyRecord:
        """Change fields of a key, as `create` takes them; a `lifetime` counts from now, None is for ever.

        With a `version`, raises `Conflict` when the key has another one by now.
        """
        checked = self._checked(changes)

        def change(record: KeyRecord) -> KeyRecord:
            _refuse_revoked(record)
            return replace(record, **checked)

        return await self._changes.make("update", KeyRecord, key_id, change, version)

    async def rotate(self, key_id: str, overlap: float) -> tuple[KeyRecord, str]:
        """Give a key a second secret; the first stays valid for `overlap` seconds."""
        until = self._clock.now() + validation.seconds(overlap, "overlap", 0)
        secret = random(SECRET_LENGTH)

        def change(record: KeyRecord) -> KeyRecord:
            _refuse_revoked(record)
            old = replace(record.secrets[-1], not_after=until)
            return replace(record, secrets=(old, self._peppers.hash(secret)))

        return await self._changes.make("rotate", KeyRecord, key_id, change), token(key_id, secret)

    async def revoke(self, key_id: str) -> KeyRecord:
        """End a key for good; the next call with it is refused."""
        return await self._changes.revoke(KeyRecord, key_id)

    async def delete(self, key_id: str) -> KeyRecord:
        """Leave a tombstone of a key; the next call with it is refused, and what it has used stays in the ledger."""
        now = self._clock.now()

        def bury(record: KeyRecord) -> KeyRecord:
            kept = {name: getattr(record, name) for name in ("id", "name", "created", "version", "tenant")}
            ended = now if record.revoked is None else record.revoked
            return KeyRecord(**kept, secrets=(), revoked=ended, deleted=now)

        return await self._changes.make("delete", KeyRecord, key_id, bury)

    async def delete_tenant(self, id: str) -> Tenant:
        """Leave a tombstone of a tenant: nothing is set any more. Raises `KeyError` where there is no record."""
        while True:
            stored = await self._store.get(Tenant, id)
            if stored is None or is_deleted(stored):
                raise KeyError(id)
            now = self._clock.now()
            buried = Tenant(id=id, created=stored.created, version=stored.version + 1, deleted=now)
            try:
                await self._changes.put("delete", stored, buried)
            except Conflict:
                continue
            return buried

    async def set_tenant(
        self,
        id: str,
        *,
        limit: Limit | None = None,
        labels: Mapping[str, str] | None = None,
        storage: Storage | None = None,
        version: int | None = None,
    ) -> Tenant:
        """Set what is given of a tenant, whether it has a record yet or not.

        With a `version` (0: without a record), raises `Conflict` when the tenant has another one by now.
        """
        validation.tenant(id)
        given: dict[str, Any] = {}
        if limit is not None:
            given["limit"] = validation.limit(limit)
        if storage is not None:
            given["storage"] = validation.storage(storage)
        if labels is not None:
            given["labels"] = validation.labels(labels)
        while True:
            stored = await self._store.get(Tenant, id)
            expect(version, stored)
            if stored is None:
                changed = Tenant(id=id, created=self._clock.now(), **given)
            elif (changed := replace(stored, deleted=None, **given)) == stored:
                return stored
            else:
                changed = replace(changed, version=stored.version + 1)
            try:
                await self._changes.put("set", stored, changed)
            except Conflict:
                continue
            return changed

    async def order(self, name: str, state: OrderState, *, until: float | None = None, reason: str = "") -> TargetOrder:
        """Order what all gateways do with the target of this name; `orders.give` says how."""
        return await target_orders.give(self._store, self._changes, self._clock.now(), name, state, until, reason)

    async def create_admin(self, name: str, *, lifetime: float | None = None) -> tuple[AdminKey, str]:
        """Make an admin key; returns its record and the token. It ends the one-time token, if there is one.

        Raises `Unauthenticated` when the actor is the one-time token and it was used before, if only by a moment.
        """
        open_once = [key for key in await self._store.all(AdminKey) if key.once and key.revoked is None]
        if self._actor == f"admin:{FIRST_ADMIN}" and not open_once:
            raise Unauthenticated
        record, presented = self._admin(mint(ADMIN), validation.name(name), lifetime=lifetime)
        await self._changes.put("create", None, record)
        for once in open_once:
            if not await self._spend(once) and self._actor == f"admin:{once.id}":
                # Another made the first admin key with it: this one is void.
                await self._changes.revoke(AdminKey, record.id)
                raise Unauthenticated
        return record, presented

    async def first_admin(self) -> tuple[AdminKey, str] | None:
        """Make the one-time token with which the first admin key can be made; None if there ever was an admin key."""
        if await self._store.all(AdminKey):
            return None
        presented = token(FIRST_ADMIN, random(SECRET_LENGTH), ADMIN)
        record, presented = self._admin((FIRST_ADMIN, presented), "first admin", once=True)
        try:
            await self._changes.put("create", None, record)
        except Conflict:
            return None
        return record, presented

    async def revoke_admin(self, id: str) -> AdminKey:
        """End an admin key for good."""
        return await self._changes.revoke(AdminKey, id)

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record for what was given."""
        fields: dict[str, Any] = {}
        for field, value in given.items():
            if field == "lifetime":
                fields["expires"] = self._expires(value)
            elif field in _CHECKS:
                fields[field] = _CHECKS[field](value)
            else:
                raise ValueError(f"a key has no {field!r} that can be changed; there are {', '.join(CHANGEABLE)}")
        return fields

    def _expires(self, lifetime: float | None) -> float | None:
        return None if lifetime is None else self._clock.now() + validation.seconds(lifetime, "lifetime", 1)

    def _admin(
        self, minted: tuple[str, str], name: str, *, lifetime: float | None = None, once: bool = False
    ) -> tuple[AdminKey, str]:
        id, presented = minted
        secrets = (self._peppers.hash(parse(presented, ADMIN)[1]),)
        now, expires = self._clock.now(), self._expires(lifetime)
        return AdminKey(id=id, name=name, secrets=secrets, created=now, expires=expires, once=once), presented

    async def _spend(self, once: AdminKey) -> bool:
        """Revoke the one-time token; False if somebody else has."""
        spent = False

        def change(record: AdminKey) -> AdminKey:
            nonlocal spent
            spent = record.revoked is None
            return replace(record, revoked=self._clock.now()) if spent else record

        await self._changes.make("revoke", AdminKey, once.id, change)
        return spent


def _refuse_revoked(record: KeyRecord) -> None:
    if record.revoked is not None:
        raise ValueError(f"key {record.id} is revoked")

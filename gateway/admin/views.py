"""Records as the admin interface and the command line tell them: with a status, without secrets."""

from __future__ import annotations

import msgspec

from gateway.admin import public
from gateway.admin.audited import is_deleted
from gateway.admin.models import AdminKeyShown, IssuedAdminKey, IssuedKey, Key, TenantShown
from gateway.core.batches import Storage
from gateway.core.types import AdminKey, KeyRecord, Limit, Tenant
from gateway.store import Store


def shown(record: KeyRecord) -> Key:
    """A key."""
    return msgspec.convert(public(record), Key)


def issued(record: KeyRecord, secret: str) -> IssuedKey:
    """A key with its new secret."""
    return msgspec.convert({**public(record), "secret": secret}, IssuedKey)


def shown_admin(record: AdminKey) -> AdminKeyShown:
    """An admin key."""
    return msgspec.convert(public(record), AdminKeyShown)


def issued_admin(record: AdminKey, secret: str) -> IssuedAdminKey:
    """An admin key with its secret."""
    return msgspec.convert({**public(record), "secret": secret}, IssuedAdminKey)


async def key(store: Store, key_id: str) -> KeyRecord:
    """The record of one key; raises `KeyError`."""
    record = await store.records.get(KeyRecord, key_id)
    if record is None or is_deleted(record):
        raise KeyError(key_id)
    return record


async def keys(
    store: Store, *, tenant: str | None = None, status: str | None = None, labels: dict[str, str] | None = None
) -> list[Key]:
    """The keys that have all this, the oldest first."""
    wanted = (labels or {}).items()
    return [
        key
        for key in [shown(record) for record in await store.records.all(KeyRecord) if not is_deleted(record)]
        if tenant in (None, key.tenant) and status in (None, key.status) and wanted <= key.labels.items()
    ]


async def tenants(store: Store) -> list[TenantShown]:
    """All tenants, by name, with the number of their keys that can be used."""
    counts: dict[str, int] = {}
    for record in await store.records.all(KeyRecord):
        if is_deleted(record):
            continue
        counts[record.tenant] = counts.get(record.tenant, 0) + (public(record)["status"] == "active")
    found = await store.records.all(Tenant)
    stored = {record.id: record for record in found if not is_deleted(record) or record.id in counts}
    return [_shown(name, stored.get(name), counts.get(name, 0)) for name in sorted({*counts, *stored})]


async def tenant(store: Store, tenant_id: str) -> TenantShown:
    """One of them; raises `KeyError`."""
    for found in await tenants(store):
        if found.id == tenant_id:
            return found
    raise KeyError(tenant_id)


def _shown(name: str, record: Tenant | None, keys: int) -> TenantShown:
    if record is None:
        return TenantShown(id=name, limit=Limit(), storage=Storage(), labels={}, created=None, version=0, keys=keys)
    return TenantShown(
        id=name,
        limit=record.limit,
        storage=record.storage,
        labels=record.labels,
        created=record.created,
        version=record.version,
        keys=keys,
    )

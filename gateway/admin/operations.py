"""What the admin interface and the command line do to records: the same bodies, the same rules, the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from gateway.admin import Registrar, views
from gateway.admin.models import (
    BodyRulesBody,
    Change,
    KeyChange,
    LimitBody,
    NewKey,
    StorageBody,
    TenantBody,
    TenantChange,
)
from gateway.core.batches import Storage
from gateway.core.body_rules import NO_RULES, BodyRules
from gateway.core.types import KeyRecord, Limit, Tenant
from gateway.store import Conflict, Store

ATTEMPTS = 5
"""Times a change is decided anew because somebody else was faster."""


async def create_key(registrar: Registrar, body: NewKey, now: float) -> tuple[KeyRecord, str]:
    """Make a key. Raises `ValueError` naming what is wrong."""
    return await registrar.create(
        body.name,
        tenant=body.tenant,
        models=body.models,
        endpoints=body.endpoints,
        default_route=body.default_route,
        user_header=body.user_header,
        limit=merged(Limit(), body.limit),
        model_limits=_by_route({}, body.model_limits),
        priority=body.priority,
        labels=body.labels,
        sources=body.sources,
        body=ruled(None, body.body),
        lifetime=lifetime(body.expires, now),
    )


async def change_key(store: Store, registrar: Registrar, key_id: str, body: KeyChange, now: float) -> KeyRecord:
    """Change a key. Raises `KeyError`, `ValueError`, and `Conflict` when `body.version` is not the stored one."""
    for _ in range(ATTEMPTS):
        record = await store.records.get(KeyRecord, key_id)
        if record is None:
            raise KeyError(key_id)
        if body.version not in (UNSET, record.version):
            raise Conflict
        try:
            return await registrar.update(key_id, version=record.version, **_fields(record, body, now))
        except Conflict:
            continue  # decide again on what they wrote; the caller's own version is compared above
    raise Conflict


async def delete_tenant(store: Store, registrar: Registrar, tenant_id: str) -> Tenant:
    """Delete what is set of a tenant. Raises `KeyError`, and `ValueError` while it has keys that can be used."""
    found = await views.tenant(store, tenant_id)
    if found.keys:
        raise ValueError(f"tenant {tenant_id!r} has {found.keys} keys that can be used: revoke or delete them first")
    return await registrar.delete_tenant(tenant_id)


async def set_tenant(registrar: Registrar, tenant_id: str, body: TenantBody) -> Tenant:
    """Write a tenant whole. Raises `ValueError`, and `Conflict` when `body.version` is not the stored one."""
    version = None if body.version is UNSET else body.version
    limit, storage = merged(Limit(), body.limit), _stored(Storage(), body.storage)
    return await registrar.set_tenant(
        tenant_id, limit=limit, storage=storage, labels=dict(body.labels), version=version
    )


async def change_tenant(store: Store, registrar: Registrar, tenant_id: str, body: TenantChange) -> Tenant:
    """Change a tenant, or make it. Raises `ValueError`, and `Conflict` when `body.version` is not the stored one."""
    for _ in range(ATTEMPTS):
        record = await store.records.get(Tenant, tenant_id) or Tenant(id=tenant_id, created=0, version=0)
        if body.version not in (UNSET, record.version):
            raise Conflict
        labels = record.labels if body.labels is UNSET else _patched(record.labels, body.labels)
        limit, storage = merged(record.limit, body.limit), _stored(record.storage, body.storage)
        try:
            return await registrar.set_tenant(
                tenant_id, limit=limit, storage=storage, labels=labels, version=record.version
            )
        except Conflict:
            continue
    raise Conflict


def merged(limit: Limit, change: Change[LimitBody]) -> Limit:
    """The limit after a change: what is absent stays, null clears."""
    if change is UNSET:
        return limit
    return msgspec.convert(_patched(msgspec.to_builtins(limit), msgspec.to_builtins(change)), Limit)


def _stored(storage: Storage, change: Change[StorageBody]) -> Storage:
    """As `merged`."""
    if change is UNSET:
        return storage
    return msgspec.convert(_patched(msgspec.to_builtins(storage), msgspec.to_builtins(change)), Storage)


def ruled(rules: BodyRules | None, change: BodyRulesBody | None) -> BodyRules | None:
    """Rules for bodies after a change: each part that it has is replaced whole, or cleared."""
    if change is None:
        return None
    parts = {name: getattr(change, name) for name in change.__struct_fields__}
    given = {name: value or type(getattr(NO_RULES, name))() for name, value in parts.items() if value is not UNSET}
    return msgspec.structs.replace(rules or NO_RULES, **given)


def lifetime(expires: float | None, now: float) -> float | None:
    """Seconds that are left until `expires`; `ValueError` when there are none."""
    if expires is not None and expires <= now:
        raise ValueError("expires: this time has passed")
    return None if expires is None else expires - now


def _fields(record: KeyRecord, body: KeyChange, now: float) -> dict[str, Any]:
    """The record's fields that change, as they will be."""
    plain = ("name", "tenant", "models", "endpoints", "default_route", "user_header", "priority")
    fields: dict[str, Any] = {name: value for name in plain if (value := getattr(body, name)) is not UNSET}
    if body.limit is not UNSET:
        fields["limit"] = merged(record.limit, body.limit)
    if body.model_limits is not UNSET:
        fields["model_limits"] = _by_route(record.model_limits, body.model_limits)
    if body.labels is not UNSET:
        fields["labels"] = _patched(record.labels, body.labels)
    if body.sources is not UNSET:
        fields["sources"] = body.sources or ()
    if body.body is not UNSET:
        fields["body"] = ruled(record.body, body.body)
    if body.expires is not UNSET:
        fields["lifetime"] = lifetime(body.expires, now)
    return fields


def _by_route(limits: Mapping[str, Limit], change: Mapping[str, LimitBody | None] | None) -> dict[str, Limit]:
    if change is None:
        return {}
    changed = {route: merged(limits.get(route, Limit()), limit) for route, limit in change.items()}
    return {route: limit for route, limit in {**limits, **changed}.items() if limit != Limit()}


def _patched(before: Any, change: Any) -> Any:
    """RFC 7396: objects are merged, null removes, all else replaces."""
    if not isinstance(change, dict):
        return {} if change is None else change
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in change.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = _patched(after.get(name), value)
    return after

"""Making and changing keys and tenants: what is stored, what others wrote meanwhile, and what the audit log keeps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.around import Around
from harness.clock import FixedClock
from harness.keyrings import PEPPERS, Parts
from msgspec import structs

from gateway.admin import Registrar, public
from gateway.admin.registrar import CHANGEABLE
from gateway.auth import parse
from gateway.auth.token import digest
from gateway.core.types import AdminKey, Allowance, Audit, Budget, KeyRecord, Limit, Secret, Tenant
from gateway.store import Conflict
from gateway.store.local import LocalStore

EVERYTHING: dict[str, Any] = {
    "tenant": "t",
    "models": ["a", "b*"],
    "endpoints": ["chat/*"],
    "limit": Limit(rpm=5, budget=Budget(day=Allowance(tokens=0)), outage={"rpm": "closed"}),
    "model_limits": {"m": Limit(tpm=9)},
    "priority": "high",
    "labels": {"team": "blue"},
    "sources": ["10.1.2.3/8", "2001:DB8::1"],
}


async def test_a_secret_is_stored_as_its_hash_under_the_newest_pepper(parts: Parts, tmp_path: Path) -> None:
    record, token = await parts.registrar.create("n")
    (stored,) = record.secrets
    assert stored == Secret(digest=digest(parse(token)[1], b"second"), pepper=2)
    assert len(stored.digest) == 64
    await parts.elsewhere.close()
    written = (tmp_path / "keys.db").read_bytes()
    assert stored.digest.encode() in written and parse(token)[1].encode() not in written


async def test_what_a_key_is_created_with(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n", lifetime=60, **EVERYTHING)
    expected = EVERYTHING | {
        "models": ("a", "b*"),
        "endpoints": ("chat/*",),
        "sources": ("10.0.0.0/8", "2001:db8::1/128"),
        "expires": parts.clock.now() + 60,
        "created": parts.clock.now(),
        "version": 1,
    }
    assert {name: getattr(record, name) for name in expected} == expected
    assert await parts.elsewhere.records.get(KeyRecord, record.id) == record


async def test_update_changes_what_it_is_told_and_nothing_else(parts: Parts) -> None:
    record, token = await parts.registrar.create("n", lifetime=60)
    changed = await parts.registrar.update(record.id, **EVERYTHING, lifetime=None)
    assert changed.version == 2 and changed.expires is None and changed.tenant == "t"
    again = await parts.registrar.update(record.id, name="m")
    assert again == structs.replace(changed, name="m", version=3)
    assert await parts.registrar.update(record.id, name="m") == again, "no change, no version"
    assert (await parts.authenticate(token, "10.0.0.1")).key == again


async def test_update_names_the_fields_there_are(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    for field in ("model", "id", "secrets", "created", "revoked", "expires"):
        with pytest.raises(ValueError, match=rf"'{field}'.*model_limits, priority, labels, sources, body, lifetime"):
            await parts.registrar.update(record.id, **{field: 1})
    assert set(CHANGEABLE) >= {*EVERYTHING, "name", "lifetime"}


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_version_that_is_expected_is_compared(parts: Parts, expected: int) -> None:
    record, _ = await parts.registrar.create("n")
    await parts.registrar.update(record.id, name="m")
    with pytest.raises(Conflict):
        await parts.registrar.update(record.id, version=expected, name="o")
    assert (await parts.registrar.update(record.id, version=2, name="p")).version == 3


async def test_rotation_lets_the_old_secret_live_for_the_overlap(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    changed, new = await parts.registrar.rotate(record.id, 100)
    assert changed.version == record.version + 1
    assert parse(new)[0] == record.id and new != old
    assert await parts.enters(old) and await parts.enters(new)
    parts.clock.advance(101)
    assert not await parts.enters(old) and await parts.enters(new)


async def test_rotating_again_does_not_lengthen_a_life(parts: Parts) -> None:
    record, first = await parts.registrar.create("n")
    _, second = await parts.registrar.rotate(record.id, 50)
    _, third = await parts.registrar.rotate(record.id, 1000)
    assert await parts.enters(second) and await parts.enters(third)
    parts.clock.advance(51)
    assert not await parts.enters(first)
    assert await parts.enters(second) and await parts.enters(third)


class Contested(Around):
    """Somebody else changes the record between our reading and our writing, a few times."""

    rivals = 3

    async def put(self, record: Any, audit: Audit | None = None) -> None:
        stored = await self.get(type(record), record.id)
        if stored is not None and self.rivals:
            self.rivals -= 1
            changed = structs.replace(stored, version=stored.version + 1, labels={"by": f"rival {self.rivals}"})
            await self.inner.put(changed)
        await self.inner.put(record, audit)


@pytest.mark.parametrize("change", ["rotate", "revoke", "update", "set_tenant"])
async def test_changes_are_decided_anew_on_what_others_wrote(tmp_path: Path, change: str) -> None:
    clock, store = FixedClock(), LocalStore(tmp_path / "keys.json")
    registrar = Registrar(Contested(store.records), PEPPERS, clock, "cli:test")
    record, old = await registrar.create("n", tenant="t")
    await registrar.set_tenant("t", limit=Limit(rpm=1))
    if change == "rotate":
        changed, token = await registrar.rotate(record.id, 60)
        assert len(changed.secrets) == 2 and token != old
    elif change == "revoke":
        changed = await registrar.revoke(record.id)
        assert changed.revoked == clock.now()
    elif change == "update":
        changed = await registrar.update(record.id, name="m")
        assert changed.name == "m"
    else:
        tenant = await registrar.set_tenant("t", limit=Limit(rpm=2))
        assert (tenant.version, tenant.limit, tenant.labels) == (5, Limit(rpm=2), {"by": "rival 0"})
        return
    assert changed.version == 1 + 3 + 1 and changed.labels == {"by": "rival 0"}
    assert await store.records.get(KeyRecord, record.id) == changed


async def test_many_rotations_at_once_all_count(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    await asyncio.gather(*(parts.registrar.rotate(record.id, 60) for _ in range(5)))
    stored = await parts.elsewhere.records.get(KeyRecord, record.id)
    assert stored is not None and stored.version == 6


async def test_revoking_twice_changes_nothing(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    first = await parts.registrar.revoke(record.id)
    parts.clock.advance(100)
    assert await parts.registrar.revoke(record.id) == first
    assert [entry.action for entry in await parts.elsewhere.records.audit()] == ["key.revoke", "key.create"]


async def test_a_revoked_key_is_not_changed(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    await parts.registrar.revoke(record.id)
    for change in (parts.registrar.rotate(record.id, 60), parts.registrar.update(record.id, name="m")):
        with pytest.raises(ValueError, match=record.id):
            await change


async def test_what_is_not_there_is_a_key_error(parts: Parts) -> None:
    for attempt in (
        parts.registrar.revoke("nobody"),
        parts.registrar.rotate("nobody", 1),
        parts.registrar.update("nobody", name="m"),
        parts.registrar.revoke_admin("nobody"),
    ):
        with pytest.raises(KeyError, match="nobody"):
            await attempt


async def test_a_tenant_is_made_and_changed_in_part(parts: Parts) -> None:
    made = await parts.registrar.set_tenant("t", limit=Limit(rpm=5))
    assert made == Tenant(id="t", created=parts.clock.now(), limit=Limit(rpm=5))
    changed = await parts.registrar.set_tenant("t", labels={"a": "b"})
    assert changed == structs.replace(made, labels={"a": "b"}, version=2)
    assert await parts.registrar.set_tenant("t", labels={"a": "b"}) == changed
    assert await parts.elsewhere.records.get(Tenant, "t") == changed


async def test_an_expected_version_of_a_tenant_is_compared_and_0_is_none(parts: Parts) -> None:
    with pytest.raises(Conflict):
        await parts.registrar.set_tenant("t", labels={}, version=1)
    await parts.registrar.set_tenant("t", labels={}, version=0)
    with pytest.raises(Conflict):
        await parts.registrar.set_tenant("t", labels={"a": "b"}, version=0)
    assert (await parts.registrar.set_tenant("t", labels={"a": "b"}, version=1)).version == 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "''"),
    ({"name": "a\nb"}, r"'a\\nb'"),
    ({"name": "x" * 129}, "128"),
    ({"tenant": "../x"}, r"'\.\./x'"),
    ({"tenant": "x" * 65}, "64"),
    ({"tenant": "t\n"}, "letter or digit"),
    ({"models": []}, "1 to 256"),
    ({"models": "gpt-4"}, "'gpt-4'.*list"),
    ({"models": ["a", ""]}, "''"),
    ({"models": [7]}, "7"),
    ({"endpoints": ["chat/*", "images/*"]}, "'images/.*chat/completions, completions, embeddings"),
    ({"endpoints": []}, "endpoints"),
    ({"limit": Limit(rpm=0)}, "rpm 0: .*at least 1"),
    ({"limit": Limit(tpm=-1)}, "tpm -1"),
    ({"limit": Limit(otpm=10**16)}, "otpm"),
    ({"limit": Limit(concurrency=True)}, "concurrency True"),
    ({"limit": Limit(budget=Budget(week=Allowance(cost_micros=-1)))}, "budget week cost_micros -1: .*at least 0"),
    ({"limit": Limit(outage={"rmp": "open"})}, "'rmp'.*rpm, tpm, itpm, otpm, concurrency, budget"),
    ({"limit": Limit(outage={"rpm": "maybe"})}, "'maybe'.*share, closed, open"),  # type: ignore[dict-item]
    ({"limit": {"rpm": 5}}, "rpm"),
    ({"model_limits": {"m": Limit(itpm=0)}}, "'m' itpm 0"),
    ({"model_limits": {"": Limit()}}, "route ''"),
    ({"model_limits": Limit(rpm=5)}, "by route name"),
    ({"priority": "urgent"}, "'urgent'.*high, normal, low"),
    ({"labels": {"a": "x" * 257}}, "256"),
    ({"labels": {"": "x"}}, "''"),
    ({"labels": {"a": 5}}, "5"),
    ({"labels": {f"l{number}": "" for number in range(33)}}, "32"),
    ({"sources": ["10.0.0.0/8", "10.0.0.0/33"]}, "'10.0.0.0/33'"),
    ({"sources": "10.0.0.0/8"}, "list"),
    ({"sources": [""]}, "sources: '' is"),
    ({"sources": [5]}, "sources: 5 is"),
    ({"lifetime": 0}, "lifetime 0"),
    ({"lifetime": float("nan")}, "nan"),
    ({"lifetime": "1d"}, "'1d'"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=lambda value: str(value)[:40] if isinstance(value, dict) else "")
async def test_what_a_key_may_not_say_is_named(parts: Parts, given: dict[str, Any], said: str) -> None:
    record, _ = await parts.registrar.create("n")
    for attempt in (parts.registrar.create(**{"name": "n", **given}), parts.registrar.update(record.id, **given)):
        with pytest.raises(ValueError, match=f"(?s){said}"):
            await attempt
    assert len(await parts.elsewhere.records.audit()) == 1, "nothing was written"


async def test_a_tenant_is_checked_too(parts: Parts) -> None:
    for attempt in (
        parts.registrar.set_tenant("a b"),
        parts.registrar.set_tenant("t", limit=Limit(rpm=0)),
        parts.registrar.set_tenant("t", labels={"": ""}),
        parts.registrar.rotate((await parts.registrar.create("n"))[0].id, -1),
    ):
        with pytest.raises(ValueError):
            await attempt
    assert await parts.elsewhere.records.all(Tenant) == []


async def test_the_audit_log_has_every_change_with_before_and_after_and_no_digest(parts: Parts) -> None:
    record, token = await parts.registrar.create("n")
    parts.clock.advance(1)
    changed = await parts.registrar.update(record.id, limit=Limit(rpm=5))
    rotated, newer = await parts.registrar.rotate(record.id, 60)
    revoked = await parts.registrar.revoke(record.id)
    tenant = await parts.registrar.set_tenant("t", limit=Limit(rpm=9))
    admin, admin_token = await parts.registrar.create_admin("a")
    await parts.registrar.revoke_admin(admin.id)
    entries = list(reversed(await parts.elsewhere.records.audit()))
    assert [(entry.action, entry.subject) for entry in entries] == [
        ("key.create", f"key:{record.id}"),
        ("key.update", f"key:{record.id}"),
        ("key.rotate", f"key:{record.id}"),
        ("key.revoke", f"key:{record.id}"),
        ("tenant.set", "tenant:t"),
        ("admin.create", f"admin:{admin.id}"),
        ("admin.revoke", f"admin:{admin.id}"),
    ]
    assert {entry.actor for entry in entries} == {"cli:test"}
    assert entries[1].time == parts.clock.now()
    assert entries[0].before is None and entries[4].before is None
    now = parts.clock.now()
    for entry, before, after in zip(entries[1:4], (record, changed, rotated), (changed, rotated, revoked), strict=True):
        assert (entry.before, entry.after) == (public(before, now), public(after, now))
    assert entries[4].after == public(tenant)
    text = msgspec.json.encode(entries).decode()
    stored = await parts.elsewhere.records.get(AdminKey, admin.id)
    assert stored is not None
    for secret in (*rotated.secrets, *stored.secrets):
        assert secret.digest not in text
    for held in (token, newer, admin_token):
        assert held.split("_")[2] not in text


def test_what_is_public() -> None:
    secret = Secret(digest="d" * 64, pepper=3, not_after=9.5)
    record = KeyRecord(id="k", name="n", secrets=(secret,), created=1.0, expires=5.0, limit=Limit(rpm=2))
    shown = public(record, 4.0)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["secrets"] == [{"pepper": 3, "not_after": 9.5}]
    assert set(shown) == {*KeyRecord.__struct_fields__, "status"} - {"deleted"}
    assert public(msgspec.structs.replace(record, deleted=7.0), 4.0)["deleted"] == 7.0
    assert (shown["limit"], shown["models"], shown["revoked"]) == ({"rpm": 2}, ["*"], None)
    statuses = [public(record, at)["status"] for at in (4.0, 5.0)] + [
        public(structs.replace(record, revoked=2.0))["status"]
    ]
    assert statuses == ["active", "expired", "revoked"]
    shown = {"id": "t", "created": 1.0, "version": 1, "limit": {}, "storage": {}, "labels": {}}
    assert public(Tenant(id="t", created=1.0)) == shown
    assert public(AdminKey(id="a", name="n", secrets=(secret,), created=1.0))["status"] == "active"

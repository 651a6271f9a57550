"""Who administers: admin keys, the configured hash, and the one-time token that makes the first key and no second."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from harness.keyrings import HERE, PEPPERS, Parts

from gateway.admin import Registrar
from gateway.auth import AdminKeys, mint, parse, token
from gateway.auth.admin_keys import BOOTSTRAP
from gateway.auth.throttle import FAILURES
from gateway.auth.token import ADMIN
from gateway.core.errors import StoreUnavailable, Throttled, Unauthenticated
from gateway.core.types import AdminKey


async def admits(admins: AdminKeys, sent: str, source: str | None = HERE) -> str | None:
    try:
        return (await admins.authenticate({b"authorization": b"Bearer " + sent.encode()}, source)).id
    except Unauthenticated:
        return None


async def test_admin_keys_come_in_and_virtual_keys_do_not(parts: Parts) -> None:
    record, held = await parts.registrar.create_admin("a", lifetime=10)
    assert held.startswith("tladm_") and record.secrets[0].pepper == 2
    assert await admits(parts.admins, held) == record.id
    assert await admits(parts.admins, (await parts.registrar.create("n"))[1]) is None
    assert await admits(parts.admins, token(record.id, "w" * 43, ADMIN)) is None
    assert await admits(parts.admins, mint(ADMIN)[1]) is None
    assert not await parts.enters(held), "an admin key cannot infer"
    parts.clock.advance(11)
    assert await admits(parts.admins, held) is None


async def test_a_revocation_holds_for_the_next_call_without_any_notice(parts: Parts) -> None:
    record, held = await parts.registrar.create_admin("a")
    assert await admits(parts.admins, held)
    await parts.registrar.revoke_admin(record.id)
    assert await admits(parts.admins, held) is None


async def test_nobody_administers_while_the_store_is_down(parts: Parts) -> None:
    _, held = await parts.registrar.create_admin("a")
    assert await admits(parts.admins, held)
    parts.records.down = True
    with pytest.raises(StoreUnavailable):
        await admits(parts.admins, held)


async def test_the_refusal_asks_for_an_admin_key(parts: Parts) -> None:
    with pytest.raises(Unauthenticated, match="tladm_"):
        await parts.admins.authenticate({}, HERE)


async def test_wrong_admin_keys_are_throttled_and_known_ones_pass(parts: Parts) -> None:
    (record, held), (_, other) = await parts.registrar.create_admin("a"), await parts.registrar.create_admin("b")
    assert await admits(parts.admins, held) == record.id
    for _ in range(FAILURES):
        assert await admits(parts.admins, mint(ADMIN)[1]) is None
    with pytest.raises(Throttled):
        await admits(parts.admins, other)
    assert await admits(parts.admins, held) == record.id


async def test_the_configured_hash_lets_its_token_in_even_when_the_store_is_down(parts: Parts) -> None:
    _, held = mint(ADMIN)
    hashed = hashlib.sha256(held.encode()).hexdigest()
    for text in (hashed, hashed.upper()):
        admins = AdminKeys(parts.records, PEPPERS, parts.clock, bootstrap=text)
        assert await admits(admins, held) == BOOTSTRAP.id == "bootstrap"
        assert await admits(admins, mint(ADMIN)[1]) is None
        record, other = await parts.registrar.create_admin("a")
        assert await admits(admins, other) == record.id
        parts.records.down = True
        assert await admits(admins, held) == BOOTSTRAP.id
        parts.records.down = False
        await admins.close()
    assert await admits(parts.admins, held) is None, "where it is not configured it is nothing"


async def test_a_weak_word_is_no_token_though_its_hash_was_configured(parts: Parts) -> None:
    admins = AdminKeys(parts.records, PEPPERS, parts.clock, bootstrap=hashlib.sha256(b"admin").hexdigest())
    assert await admits(admins, "admin") is None
    await admins.close()


@pytest.mark.parametrize("text", ["hunter2", "tladm_x", "a" * 63, "g" * 64, "a" * 64 + "\n"])
def test_what_is_no_hash_is_refused_without_showing_it(parts: Parts, text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits") as caught:
        AdminKeys(parts.records, PEPPERS, parts.clock, bootstrap=text)
    assert text not in str(caught.value)


async def once(parts: Parts) -> tuple[Registrar, str]:
    """The registrar of somebody who came with the one-time token, and the token."""
    made = await parts.registrar.first_admin()
    assert made is not None
    record, held = made
    assert record.once and await admits(parts.admins, held) == record.id
    return Registrar(parts.records, PEPPERS, parts.clock, f"admin:{record.id}"), held


async def test_the_one_time_token_makes_one_admin_key(parts: Parts) -> None:
    registrar, held = await once(parts)
    assert parse(held, ADMIN)
    record, made = await registrar.create_admin("first")
    assert not record.once and await admits(parts.admins, made) == record.id
    assert await admits(parts.admins, held) is None
    with pytest.raises(Unauthenticated):  # a call that came in before it was used
        await registrar.create_admin("second")
    active = [key for key in await parts.elsewhere.records.all(AdminKey) if key.revoked is None]
    assert active == [record]


async def test_any_admin_key_ends_the_one_time_token(parts: Parts) -> None:
    _, held = await once(parts)
    await parts.registrar.create_admin("by hand")
    assert await admits(parts.admins, held) is None


async def test_of_calls_with_the_one_time_token_at_the_same_moment_one_wins(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrar, _ = await once(parts)
    put = parts.records.put

    async def slow(*given: Any) -> None:
        await asyncio.sleep(0)
        await put(*given)

    monkeypatch.setattr(parts.records, "put", slow)
    results = await asyncio.gather(*(registrar.create_admin(f"n{i}") for i in range(5)), return_exceptions=True)
    made = [result for result in results if isinstance(result, tuple)]
    assert len(made) == 1 and all(isinstance(lost, Unauthenticated) for lost in results if lost not in made)
    active = [key for key in await parts.elsewhere.records.all(AdminKey) if key.revoked is None]
    assert active == [made[0][0]], "the keys of those who lost are void"


async def test_gateways_that_start_together_make_one_one_time_token(parts: Parts) -> None:
    made = await asyncio.gather(*(parts.registrar.first_admin() for _ in range(3)))
    assert len([found for found in made if found is not None]) == 1
    assert len(await parts.elsewhere.records.all(AdminKey)) == 1


async def test_there_is_no_one_time_token_once_there_was_an_admin_key(parts: Parts) -> None:
    record, _ = await parts.registrar.create_admin("a")
    assert await parts.registrar.first_admin() is None
    await parts.registrar.revoke_admin(record.id)
    assert await parts.registrar.first_admin() is None

"""Keys move to the newest pepper when they are used: in the background, once, and never at a client's cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from harness.keyrings import HERE, Parts, turns, until

from gateway.auth import parse
from gateway.auth.token import digest
from gateway.core.types import AdminKey, KeyRecord

Gateways = Callable[[Mapping[int, bytes]], Parts]
OLD, NEW = {0: b"", 1: b"one"}, {0: b"", 1: b"one", 2: b"two"}


def moved(parts: Parts, id: str, kind: Any = KeyRecord) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        record = await parts.elsewhere.records.get(kind, id)
        return all(secret.pepper == 2 for secret in record.secrets)

    return check


async def test_a_key_is_hashed_under_the_newest_pepper_when_it_is_used(gateway: Gateways) -> None:
    record, held = await gateway(OLD).registrar.create("n", tenant="t")
    parts = gateway(NEW)
    await parts.keyring.open()
    assert await parts.enters(held)
    await until(moved(parts, record.id))
    stored = await parts.elsewhere.records.get(KeyRecord, record.id)
    assert stored is not None and stored.version == 2 and stored.tenant == "t"
    assert [secret.digest for secret in stored.secrets] == [digest(parse(held)[1], b"two")]
    for _ in range(3):
        assert await parts.enters(held)
    await turns()
    assert await parts.elsewhere.records.get(KeyRecord, record.id) == stored, "once"
    newest = (await parts.elsewhere.records.audit())[0]
    assert (newest.actor, newest.action, newest.subject) == ("gateway", "key.rehash", f"key:{record.id}")


async def test_only_the_secret_that_was_used_moves_and_it_ends_when_it_was_to_end(gateway: Gateways) -> None:
    old = gateway(OLD)
    record, held = await old.registrar.create("n")
    await old.registrar.rotate(record.id, 100)
    parts = gateway(NEW)
    await parts.keyring.open()
    assert await parts.enters(held)

    async def one_moved() -> bool:
        stored = await parts.elsewhere.records.get(KeyRecord, record.id)
        assert stored is not None
        return [(secret.pepper, secret.not_after) for secret in stored.secrets] == [
            (2, parts.clock.now() + 100),
            (1, None),
        ]

    await until(one_moved)


async def test_the_client_does_not_wait_for_it_and_cannot_stop_it(gateway: Gateways) -> None:
    record, held = await gateway(OLD).registrar.create("n")
    parts = gateway(NEW)
    await parts.keyring.open()
    put, writing, go_on = parts.records.put, asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> None:
        writing.set()
        await go_on.wait()
        await put(*given)

    parts.records.put = slow  # type: ignore[method-assign]
    client = asyncio.ensure_future(parts.enters(held))
    assert await client, "it was not waited for"
    await writing.wait()
    client.cancel()
    assert all([await parts.enters(held) for _ in range(5)])
    go_on.set()
    await until(moved(parts, record.id))
    await turns()
    stored = await parts.elsewhere.records.get(KeyRecord, record.id)
    assert stored is not None and stored.version == 2


async def test_a_change_by_somebody_else_is_not_lost(gateway: Gateways) -> None:
    record, held = await gateway(OLD).registrar.create("n")
    parts = gateway(NEW)
    assert await parts.enters(held)  # in memory, and waiting to be re-hashed
    await parts.registrar.update(record.id, labels={"a": "b"})
    await parts.keyring.open()

    async def refused() -> bool:
        return parts.records.conflicts == 1

    await until(refused)
    stored = await parts.elsewhere.records.get(KeyRecord, record.id)
    assert stored is not None and stored.version == 2 and stored.secrets[0].pepper == 1
    assert await parts.enters(held)  # loaded anew, and tried again
    await until(moved(parts, record.id))
    stored = await parts.elsewhere.records.get(KeyRecord, record.id)
    assert stored is not None and stored.version == 3 and stored.labels == {"a": "b"}


async def test_while_the_store_is_down_nothing_happens_and_later_it_does(gateway: Gateways) -> None:
    record, held = await gateway(OLD).registrar.create("n")
    parts = gateway(NEW)
    assert await parts.enters(held)
    parts.records.down = True
    await parts.keyring.open()
    for _ in range(3):
        assert await parts.enters(held)
        await turns()
    assert not await moved(parts, record.id)()
    parts.records.down = False
    assert await parts.enters(held)
    await until(moved(parts, record.id))


async def test_what_cannot_be_written_is_said_once(gateway: Gateways, caplog: pytest.LogCaptureFixture) -> None:
    record, held = await gateway(OLD).registrar.create("n")
    parts = gateway(NEW)

    async def full(*_: Any) -> None:
        raise OSError("no space left")

    parts.records.put = full  # type: ignore[method-assign]
    await parts.keyring.open()
    with caplog.at_level(logging.ERROR, "trunkline.auth"):
        for _ in range(3):
            assert await parts.enters(held)
            await turns()
    (said,) = caplog.messages
    assert record.id in said and parse(held)[1] not in said


async def test_keys_that_may_not_come_in_do_not_move(gateway: Gateways) -> None:
    old = gateway(OLD)
    revoked, token = await old.registrar.create("n")
    await old.registrar.revoke(revoked.id)
    parts = gateway(NEW)
    await parts.keyring.open()
    assert not await parts.enters(token)
    await turns()
    assert not await moved(parts, revoked.id)()


async def test_admin_keys_move_too(gateway: Gateways) -> None:
    record, held = await gateway(OLD).registrar.create_admin("n")
    parts = gateway(NEW)
    await parts.admins.open()
    assert (await parts.admins.authenticate({b"x-api-key": held.encode()}, HERE)).id == record.id
    await until(moved(parts, record.id, AdminKey))
    assert (await parts.admins.authenticate({b"x-api-key": held.encode()}, HERE)).version == 2

"""Changes of records are told to others soon, and a store knows when it is deaf or has lost its memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from contract.written import Places, record, soon, unique
from harness.redis_server import RedisServer, redis_server
from redis import Redis

from gateway.core.types import KeyRecord, TargetOrder, Tenant
from gateway.store import StoreDown
from gateway.store.redis.store import RedisStore


@pytest.mark.parametrize("kind", [KeyRecord, Tenant, TargetOrder])
async def test_a_change_by_another_is_heard_of_within_a_second(places: Places, kind: type[Any]) -> None:
    one, other, id = await places.store(), await places.store(), unique()
    heard: list[str | None] = []
    other.records.watch(heard.append)
    await soon(lambda: other.records.subscribed, "the store hears", 3)
    await asyncio.sleep(0.05)
    name = {KeyRecord: "key", Tenant: "tenant", TargetOrder: "target"}[kind]
    for version in (1, 2):
        heard.clear()
        await one.records.put(record(kind, id, version))
        await soon(lambda: f"{name}:{id}" in heard or None in heard, "the change is heard of")


async def test_a_change_of_ones_own_is_heard_of_too(places: Places) -> None:
    store, id = await places.store(), unique()
    heard: list[str | None] = []
    store.records.watch(heard.append)
    await soon(lambda: store.records.subscribed, "the store hears", 3)
    heard.clear()
    await store.records.put(record(KeyRecord, id))
    await soon(lambda: f"key:{id}" in heard or None in heard, "the change is heard of")


async def test_everybody_who_watches_is_told(places: Places) -> None:
    store, id = await places.store(), unique()
    keys: list[str | None] = []
    orders: list[str | None] = []
    store.records.watch(keys.append)
    store.records.watch(orders.append)
    await soon(lambda: store.records.subscribed, "the store hears", 3)
    await store.records.put(record(TargetOrder, id))
    for heard in (keys, orders):
        await soon(lambda heard=heard: f"target:{id}" in heard or None in heard, "the change is heard of")


async def test_after_a_reconnect_anything_may_have_changed(redis: RedisServer) -> None:
    """What happened while nobody listened is told as None, and the store says when it is deaf."""
    heard: list[str | None] = []
    with Redis.from_url(redis.url) as client:
        store = RedisStore(redis.url, timeout=30.0)
        store.records.watch(heard.append)
        await store.open()
        try:
            await soon(lambda: store.records.subscribed and None in heard, "the subscription", 3)
            heard.clear()
            client.client_kill_filter(_type="pubsub")
            await soon(lambda: not store.records.subscribed, "the store knows that it is deaf")
            await soon(lambda: store.records.subscribed and heard == [None], "the subscription again", 3)
            id = unique()
            await store.records.put(record(KeyRecord, id))
            await soon(lambda: f"key:{id}" in heard, "the change is heard of")
        finally:
            await store.close()


async def test_a_store_whose_redis_is_gone_does_not_hear() -> None:
    with redis_server() as own:
        store = RedisStore(own.url, timeout=0.25)
        assert not store.records.subscribed
        await store.open()
        try:
            await soon(lambda: store.records.subscribed, "the store hears", 3)
            own.stop()
            await soon(lambda: not store.records.subscribed, "the store knows that it is deaf", 4)
            heard: list[str | None] = []
            store.records.watch(heard.append)
            own.restart()
            await soon(lambda: store.records.subscribed and None in heard, "the store hears again", 4)
        finally:
            await store.close()


async def test_a_lost_memory_is_an_outage_and_not_an_unknown_key() -> None:
    """A Redis that was flushed has no records; whoever has seen some must not take their absence for an answer."""
    with redis_server() as own:
        store = RedisStore(own.url, timeout=30.0)
        await store.open()
        try:
            assert await store.records.get(KeyRecord, "never") is None
            await store.records.put(record(KeyRecord, "a"))
            assert await store.records.get(KeyRecord, "a") is not None
            assert await store.records.get(KeyRecord, "never") is None
            own.ask("FLUSHALL")
            for look in (
                store.records.get(KeyRecord, "a"),
                store.records.get(KeyRecord, "b"),
                store.records.all(KeyRecord),
            ):
                with pytest.raises(StoreDown):
                    await look
            await store.records.put(record(KeyRecord, "b"))
            assert await store.records.get(KeyRecord, "a") is None
        finally:
            await store.close()

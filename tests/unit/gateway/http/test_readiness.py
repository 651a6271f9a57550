"""Whether a gateway says that it is ready, with a real Redis that goes away."""

from __future__ import annotations

from harness.redis_server import free_port, redis_server

from gateway.http.operations import Readiness
from gateway.store.redis.store import RedisStore


async def test_an_outage_does_not_unready_a_worker_that_nobody_has_asked_before() -> None:
    with redis_server() as redis:
        store = RedisStore(redis.url)
        await store.open()
        await store.ping()
    state = await Readiness(store).look({})
    await store.close()
    assert state.ready and state.store.startswith("down: ")


async def test_a_store_that_never_answered_keeps_a_worker_from_being_ready() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    await store.open()
    state = await Readiness(store).look({})
    await store.close()
    assert not state.ready

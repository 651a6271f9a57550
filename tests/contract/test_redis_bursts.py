"""A burst is not an outage: the loop is behind, Redis is behind, and neither is taken for a Redis that is gone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import uvloop
from contract.asks import TIMEOUT, keyed, lease, opened
from harness.redis_server import RedisServer

from gateway.store import StoreDown
from gateway.store.redis.connection import Pipe
from gateway.store.redis.store import RedisStore


def live(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test in the gateway's own loop: that one runs timers before it reads sockets."""

    @wraps(story)
    def test(**given: Any) -> None:
        uvloop.run(story(**given))

    return test


@contextmanager
def throttled(own: RedisServer, stopped: float, running: float) -> Iterator[None]:
    """The server runs for a part of the time only, as where it has no core of its own."""
    ended = threading.Event()

    def throttle() -> None:
        while not ended.is_set():
            own.freeze()
            time.sleep(stopped)
            own.thaw()
            time.sleep(running)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def busy(work: Callable[[], None]) -> None:
    """Let the loop come upon `work` as it reads its sockets: what else can be read by then, it sees only after that."""
    loop = asyncio.get_running_loop()
    mine, other = socket.socketpair()

    def read() -> None:
        loop.remove_reader(mine)
        mine.close()
        other.close()
        work()

    loop.add_reader(mine, read)
    other.send(b"x")


async def burst(store: RedisStore, key_id: str, calls: int, limit: int) -> Counter[str]:
    """What became of so many calls at once."""
    found = await asyncio.gather(
        *[store.limits.admit(lease(key_id, limit)) for _ in range(calls)], return_exceptions=True
    )
    return Counter(
        repr(verdict) if isinstance(verdict, BaseException) else "admitted" if verdict.denied is None else "denied"
        for verdict in found
    )


@pytest.mark.parametrize("throttle", [(0.05, 0.05), (0.08, 0.02)])
@live
async def test_a_burst_on_a_redis_that_is_short_of_a_core(own: RedisServer, throttle: tuple[float, float]) -> None:
    async with opened(own.url) as store:
        key_id = await keyed(store)
        with throttled(own, *throttle):
            assert await burst(store, key_id, 3000, 1000) == {"admitted": 1000, "denied": 2000}
        assert own.ask("ZCARD", "{tl}:" + f"lease:key:{key_id}") == 1000


@live
async def test_a_loop_that_is_behind(own: RedisServer) -> None:
    """It is busy for longer than the time-out again and again, while the answers lie in the socket."""
    async with opened(own.url) as store:
        await store.ping()
        for _ in range(10):
            asked = asyncio.ensure_future(store.ping())
            await asyncio.sleep(0)
            busy(lambda: time.sleep(TIMEOUT + 0.1))
            await asked


@live
async def test_an_answer_that_comes_while_the_loop_is_busy_is_read_before_the_verdict(own: RedisServer) -> None:
    async with opened(own.url) as store:
        await store.ping()
        own.freeze()
        asked = asyncio.ensure_future(store.ping())
        await asyncio.sleep(0)
        timer = store._pipe._timer
        last = timer.began() + timer._most
        while timer.turn < last:
            await asyncio.sleep(0.001)

        def late() -> None:
            own.thaw()
            time.sleep(TIMEOUT)

        busy(late)
        await asked


@live
async def test_a_redis_that_is_gone_is_noticed_by_a_loop_that_is_busy_half_of_the_time(own: RedisServer) -> None:
    async with opened(own.url) as store:
        await store.ping()
        own.freeze()
        turns, asked = 0, asyncio.ensure_future(store.ping())
        while not asked.done():
            time.sleep(0.02)
            await asyncio.sleep(0.02)
            turns += 1
        with pytest.raises(StoreDown):
            await asked
        assert turns * 0.04 < 3 * TIMEOUT, "a loop that is slower takes fewer turns"


@live
async def test_what_was_asked_for_before_the_end_is_done(own: RedisServer) -> None:
    """However long it takes a Redis that goes on answering."""
    pipe = Pipe(own.url, TIMEOUT)
    pipe.open()
    await pipe.call("PING")
    with throttled(own, 0.08, 0.02):
        for _ in range(40_000):
            pipe.submit("INCR", "done")
        await pipe.close()
    assert own.ask("GET", "done") == "40000"

"""What workers tell each other of their targets, and all of them the operator: who hears what, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from contract.timed import RedisClock, TimedStore, time_scripts
from contract.written import unique
from harness.clock import FixedClock
from harness.redis_server import RedisServer, redis_server
from redis import Redis

from gateway.store import Store, StoreDown
from gateway.store.local import LocalStore
from gateway.store.redis.store import RedisStore


class Fleet:
    """Opens stores of workers (and of an operator, who has no boot id) on one clock."""

    def __init__(self, make: Callable[[str], Store], clock: FixedClock) -> None:
        self._make, self.clock = make, clock
        self._open: list[Store] = []

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *_: object) -> None:
        for store in list(self._open):
            await self.end(store)

    async def worker(self, boot: str = "") -> Store:
        store = self._make(boot)
        await store.open()
        self._open.append(store)
        return store

    async def end(self, store: Store) -> None:
        self._open.remove(store)
        await store.close()


@pytest.fixture
async def fleet(own: RedisServer) -> AsyncIterator[Fleet]:
    """Workers on a Redis of the test's own."""
    with pytest.MonkeyPatch.context() as patch, Redis.from_url(own.url) as client:
        time_scripts(patch)
        clock = RedisClock(client)
        async with Fleet(lambda boot: TimedStore(own.url, clock, boot), clock) as fleet:
            yield fleet


@pytest.fixture(params=["memory", "redis"])
async def reporting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Each store, for what is reported."""
    if request.param == "redis":
        with pytest.MonkeyPatch.context() as patch, redis_server() as server, Redis.from_url(server.url) as client:
            time_scripts(patch)
            clock = RedisClock(client)
            async with Fleet(lambda boot: TimedStore(server.url, clock, boot), clock) as fleet:
                yield fleet
        return
    still = FixedClock()
    async with Fleet(lambda boot: LocalStore(tmp_path / "keys.json", still.now, boot=boot), still) as fleet:
        yield fleet


async def test_each_reads_what_the_others_wrote_on_the_boards_it_names(fleet: Fleet) -> None:
    one, two, three = [await fleet.worker(boot) for boot in ("one", "two", "three")]
    raw = bytes(range(256))
    assert await one.board.exchange({"r": b"1", "s": raw}) == {"r": {}, "s": {}}
    fleet.clock.advance(0.5)
    assert await two.board.exchange({"s": b"2", "r": b"2r"}) == {"s": {"one": (raw, 0.5)}, "r": {"one": (b"1", 0.5)}}
    fleet.clock.advance(0.25)
    assert await three.board.exchange({"r": b"3"}) == {"r": {"one": (b"1", 0.75), "two": (b"2r", 0.25)}}
    assert await one.board.exchange({"r": b"11"}) == {"r": {"two": (b"2r", 0.25), "three": (b"3", 0.0)}}
    assert await two.board.exchange({"r": b"2"}) == {"r": {"one": (b"11", 0.0), "three": (b"3", 0.0)}}


async def test_nothing_to_say_only_reads(fleet: Fleet, own: RedisServer) -> None:
    one, two, operator = await fleet.worker("one"), await fleet.worker("two"), await fleet.worker()
    await one.board.exchange({"r": b"word"})
    assert await two.board.exchange({"r": b"", "empty": b""}) == {"r": {"one": (b"word", 0.0)}, "empty": {}}
    assert await operator.board.exchange({"r": b"from nobody"}) == {"r": {"one": (b"word", 0.0)}}
    assert own.ask("HKEYS", "{tl}:load:r") == ["one"]
    await one.board.exchange({"r": b""})
    assert await two.board.exchange({"r": b""}) == {"r": {"one": (b"word", 0.0)}}, "what was said stays until it is old"


async def test_words_grow_old_and_are_dropped_by_the_time_of_redis(fleet: Fleet, own: RedisServer) -> None:
    one, two = await fleet.worker("one"), await fleet.worker("two")
    await one.board.exchange({"r": b"word"})
    fleet.clock.advance(2.0)
    assert await two.board.exchange({"r": b"2"}) == {"r": {"one": (b"word", 2.0)}}
    fleet.clock.advance(0.001)
    assert await two.board.exchange({"r": b"2"}) == {"r": {}}
    assert sorted(own.ask("HKEYS", "{tl}:load:r")) == ["one", "two"]
    fleet.clock.advance(8.0)
    assert await two.board.exchange({"r": b"2"}) == {"r": {}}
    assert own.ask("HKEYS", "{tl}:load:r") == ["two"]
    assert 50_000 < own.ask("PTTL", "{tl}:load:r") <= 60_000


async def test_a_word_from_a_clock_that_was_ahead_is_dead(fleet: Fleet, own: RedisServer) -> None:
    """A new master's clock may be behind: what the old one stamped would never grow old."""
    one, two = await fleet.worker("one"), await fleet.worker("two")
    await one.board.exchange({"r": b"word"})
    fleet.clock.advance(-1.0)
    assert await two.board.exchange({"r": b""}) == {"r": {"one": (b"word", 0.0)}}
    fleet.clock.advance(-60.0)
    assert await two.board.exchange({"r": b"2"}) == {"r": {}}
    assert own.ask("HKEYS", "{tl}:load:r") == ["two"]


async def test_a_worker_that_ends_takes_its_words_back(fleet: Fleet, own: RedisServer) -> None:
    one, two = await fleet.worker("one"), await fleet.worker("two")
    await one.board.exchange({"r": b"1", "s": b"1"})
    await two.board.exchange({"r": b"2"})
    await one.board.report(b"1")
    await two.board.report(b"2")
    await fleet.end(one)
    assert await two.board.exchange({"r": b"2", "s": b""}) == {"r": {}, "s": {}}
    assert own.ask("HKEYS", "{tl}:load:s") == []
    assert own.ask("HKEYS", "{tl}:reports") == own.ask("ZRANGE", "{tl}:reported", 0, -1) == ["two"]


async def test_fifty_boards_are_one_call(fleet: Fleet, own: RedisServer) -> None:
    one, two = await fleet.worker("one"), await fleet.worker("two")
    boards = {f"r{n}": b"%d" % n for n in range(50)}
    await one.board.exchange(boards)
    own.ask("CONFIG", "RESETSTAT")
    found = await two.board.exchange(boards)
    assert found == {name: {"one": (word, 0.0)} for name, word in boards.items()}
    scripts = own.ask("INFO", "commandstats")
    assert scripts["cmdstat_evalsha"]["calls"] == 1
    assert await two.board.exchange({}) == {}
    many = {f"r{n}": b"2" for n in range(501)}
    assert [name for name, others in (await two.board.exchange(many)).items() if others] == list(boards)
    assert len(own.keys("{tl}:load:r*")) == 501


async def test_a_gateway_alone_hears_nobody(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "keys.json", boot="one")
    assert await store.board.exchange({"r": b"word", "s": b""}) == {"r": {}, "s": {}}
    assert await store.board.exchange({}) == {}


async def test_the_newest_report_of_each_worker_is_read_by_others(reporting: Fleet) -> None:
    worker, operator = await reporting.worker("one"), await reporting.worker()
    assert await operator.board.reports() == {}
    await worker.board.report(b"first\nline")
    await worker.board.report(b"second\0\nline")
    reporting.clock.advance(1.5)
    assert await operator.board.reports() == {"one": (b"second\0\nline", 1.5)} == await worker.board.reports()
    await operator.board.report(b"nobody's")
    assert list(await operator.board.reports()) == ["one"]


async def test_a_report_that_is_not_renewed_is_forgotten(reporting: Fleet) -> None:
    worker, operator = await reporting.worker("one"), await reporting.worker()
    for _ in range(3):
        await worker.board.report(b"the same")
        reporting.clock.advance(6.0)
    assert await operator.board.reports() == {"one": (b"the same", 6.0)}
    reporting.clock.advance(3.9)
    assert list(await operator.board.reports()) == ["one"]
    reporting.clock.advance(0.2)
    assert await operator.board.reports() == {}


async def test_a_worker_that_ends_takes_its_report_back(reporting: Fleet) -> None:
    worker, operator = await reporting.worker("one"), await reporting.worker()
    await worker.board.report(b"word")
    await reporting.end(worker)
    assert await operator.board.reports() == {}


async def test_reports_of_the_dead_are_swept_by_the_living(fleet: Fleet, own: RedisServer) -> None:
    one, two = await fleet.worker("one"), await fleet.worker("two")
    await one.board.report(b"1")
    fleet.clock.advance(11.0)
    await two.board.report(b"2")
    assert own.ask("HKEYS", "{tl}:reports") == own.ask("ZRANGE", "{tl}:reported", 0, -1) == ["two"]
    assert 50_000 < own.ask("PTTL", "{tl}:reports") <= 60_000


async def test_the_board_lives_where_the_counters_do(own: RedisServer) -> None:
    with redis_server() as records:
        store = RedisStore(own.url, timeout=30.0, records_url=records.url, boot="one")
        await store.open()
        try:
            await store.board.exchange({"r": b"word"})
            await store.board.report(b"word")
            assert own.keys("{tl}:load:*") == ["{tl}:load:r"]
            assert own.keys("{tl}:report*") == ["{tl}:reported", "{tl}:reports"]
            assert records.keys("{tl}:load:*") == records.keys("{tl}:report*") == []
        finally:
            await store.close()


async def test_without_an_answer_it_is_an_outage_and_then_it_goes_on(own: RedisServer) -> None:
    store = RedisStore(own.url, timeout=0.25, boot=unique())
    await store.open()
    try:
        await store.board.exchange({"r": b"word"})
        own.stop()
        for ask in (store.board.exchange({"r": b"word"}), store.board.report(b"word"), store.board.reports()):
            with pytest.raises(StoreDown):
                await ask
        own.restart()
        async with asyncio.timeout(30):
            while not own.keys("{tl}:load:r"):
                try:
                    assert await store.board.exchange({"r": b"word"}) == {"r": {}}
                except StoreDown:
                    await asyncio.sleep(0.05)
    finally:
        await store.close()

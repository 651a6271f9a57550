"""What only the ledger in Redis promises: a stream to consume, bounds, and nothing lost or doubled in an outage."""

from __future__ import annotations

import asyncio
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.redis_server import RedisServer, redis_server
from redis import Redis

from gateway.core.types import Entry
from gateway.metering.ledger import LedgerWriter
from gateway.store import StoreDown
from gateway.store.redis.connection import Pipe
from gateway.store.redis.ledger import RedisLedger

TIMEOUT = 0.25


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server to do harm to."""
    with redis_server() as started:
        yield started
        started.process.send_signal(signal.SIGCONT)


@pytest.fixture
def client(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url, decode_responses=True) as connected:
        yield connected


@asynccontextmanager
async def opened(server: RedisServer, max_entries: int = 10_000) -> AsyncIterator[RedisLedger]:
    pipe = Pipe(server.url, TIMEOUT)
    pipe.open()
    try:
        yield RedisLedger(pipe, max_entries)
    finally:
        await pipe.close()


def entry(n: int = 1, at: float | None = None) -> Entry:
    now = time.time() if at is None else at
    return Entry(call_id=uuid.uuid4().hex, time=now, key_id="k", tenant="t", route="r", target="a", input=n, output=n)


async def counted(ledger: RedisLedger) -> int:
    return sum(each.calls for each in await ledger.sums("0000-01-01", "9999-12-31"))


async def until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_consumer_group_reads_every_entry_once(server: RedisServer, client: Redis) -> None:
    client.xgroup_create("{tl}:ledger", "billing", id="0", mkstream=True)
    entries = [entry(n) for n in range(5)]
    async with opened(server) as ledger:
        await ledger.append("b-1", entries[:3])
        await ledger.append("b-1", entries[:3])
        await ledger.append("b-2", entries[3:])
    ((_, read),) = client.xreadgroup("billing", "one", {"{tl}:ledger": ">"}, count=100)
    assert [list(fields) for _, fields in read] == [["entry"]] * 5
    assert [msgspec.json.decode(fields["entry"], type=Entry) for _, fields in read] == entries
    assert client.xreadgroup("billing", "two", {"{tl}:ledger": ">"}, count=100) == []
    assert client.xack("{tl}:ledger", "billing", *(number for number, _ in read)) == 5


async def test_the_documented_consumer_stores_every_entry(server: RedisServer, client: Redis) -> None:
    """The program in docs/ledger.md, which crashes once after it has stored a batch and before it says so."""
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("redis://localhost:6379/0", server.url)
    client.execute_command(*re.search(r"XGROUP CREATE \S+ \S+ \S+ MKSTREAM", page)[0].split())  # type: ignore[index]
    entries = [entry(n) for n in range(1200)]
    async with opened(server) as ledger:
        for i in range(0, 1200, 400):
            await ledger.append(f"b-{i}", entries[i : i + 400])
    stored: dict[str, int] = {}
    crashes = [600]

    def store(batch: Iterable[dict[str, Any]]) -> None:
        stored.update((each["call_id"], each.get("input", 0)) for each in batch)
        if crashes and len(stored) > crashes[0]:
            crashes.pop()
            raise InterruptedError
        if len(stored) == 1200:
            raise EOFError

    for end in (InterruptedError, EOFError):
        with pytest.raises(end):
            await asyncio.to_thread(lambda: exec(program, {"store": store}))
    assert stored == {each.call_id: each.input for each in entries}


async def test_the_stream_is_bounded_and_the_sums_are_not(server: RedisServer, client: Redis) -> None:
    async with opened(server, max_entries=200) as ledger:
        for i in range(30):
            await ledger.append(f"b-{i}", [entry() for _ in range(100)])
        assert 200 <= client.xlen("{tl}:ledger") <= 400
        assert await counted(ledger) == 3000


async def test_all_keys_live_in_one_slot_and_expire_as_told(server: RedisServer, client: Redis) -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    async with opened(server) as ledger:
        await ledger.append("b-1", [entry(at=noon.timestamp())])
    day = noon.date().isoformat()
    keys = {"{tl}:batch:b-1", "{tl}:ledger", "{tl}:usage", f"{{tl}}:usage:{day}", "{tl}:targets"}
    assert set(client.keys("*")) == keys
    assert 3590 <= client.ttl("{tl}:batch:b-1") <= 3600
    assert client.execute_command("PTTL", "{tl}:targets") == -1
    ends = noon.replace(hour=0).timestamp() + 401 * 86400
    assert abs(time.time() + client.ttl(f"{{tl}}:usage:{day}") - ends) < 5
    assert client.hgetall(f"{{tl}}:usage:{day}") == {"calls|k|t|r": "1", "input|k|t|r": "1", "output|k|t|r": "1"}


async def test_a_redis_that_forgot_its_scripts_is_told_them_again(server: RedisServer, client: Redis) -> None:
    async with opened(server) as ledger:
        await ledger.append("b-1", [entry()])
        client.script_flush()
        await ledger.append("b-2", [entry()])
        assert await counted(ledger) == 2


async def test_a_full_redis_takes_nothing_of_a_batch(server: RedisServer, client: Redis) -> None:
    async with opened(server) as ledger:
        await ledger.append("b-1", [entry()])
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreDown):
            await ledger.append("b-2", [entry()])
        client.config_set("maxmemory", 0)
        assert await counted(ledger) == 1
        await ledger.append("b-2", [entry()])
        assert await counted(ledger) == 2


async def test_a_dead_redis_is_a_store_that_is_down(server: RedisServer) -> None:
    async with opened(server) as ledger:
        await ledger.append("b-1", [entry()])
        server.stop()
        for work in (ledger.append("b-2", [entry()]), ledger.sums("2026-01-01", "2026-01-01"), ledger.by_target()):
            with pytest.raises(StoreDown):
                await work


@pytest.mark.parametrize("harm", ["frozen", "paused"])
async def test_an_outage_while_calls_end_loses_none_and_doubles_none(
    server: RedisServer, client: Redis, harm: str
) -> None:
    """Frozen, Redis reads what it was sent when it wakes up: what we gave up on arrives after all."""
    dropped: list[int] = []
    async with opened(server) as ledger:
        writer = LedgerWriter(ledger, dropped.append)
        writer.open()
        for i in range(1500):
            writer.add(entry(i))
            if i % 300 == 150:
                if harm == "frozen":
                    server.process.send_signal(signal.SIGSTOP)
                else:
                    client.execute_command("CLIENT", "PAUSE", 700)
                await asyncio.sleep(0.6)
                server.process.send_signal(signal.SIGCONT)
            if i % 50 == 0:
                await asyncio.sleep(0.02)
        await until(lambda: client.xlen("{tl}:ledger") >= 1500)
        await writer.close()
        assert not dropped
        assert client.xlen("{tl}:ledger") == 1500
        (total,) = await ledger.sums("2000-01-01", "2100-01-01")
        assert (total.calls, total.input) == (1500, sum(range(1500)))
        assert await ledger.by_target() == {"a": (sum(range(1500)), sum(range(1500)))}


async def test_two_gateways_add_up(server: RedisServer) -> None:
    async with opened(server) as one, opened(server) as other:
        writers = [LedgerWriter(one), LedgerWriter(other)]
        for writer in writers:
            writer.open()
            for i in range(700):
                writer.add(entry(i))
        for writer in writers:
            await writer.close()
        assert await counted(one) == 1400

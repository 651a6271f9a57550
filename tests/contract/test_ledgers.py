"""One suite for both ledgers: entries are kept, summed by UTC day, and counted once."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness.redis_server import RedisServer, redis_server
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from gateway.core.types import Entry, Sum
from gateway.store import Ledger
from gateway.store.local import LocalStore
from gateway.store.redis.connection import Pipe
from gateway.store.redis.ledger import RedisLedger

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def entry(
    *, time: float = NOON, key: str = "k1", tenant: str = "default", route: str = "r", target: str = "t", n: int = 1
) -> Entry:
    """A call that took `n` prompt tokens, and other counts that follow from it."""
    return Entry(
        call_id=uuid.uuid4().hex,
        time=time,
        key_id=key,
        tenant=tenant,
        route=route,
        target=target,
        endpoint="chat/completions",
        input=n,
        cached=n // 2,
        output=2 * n,
        cost_micros=3 * n,
        source="upstream",
    )


def expected(entries: Sequence[Entry]) -> list[Sum]:
    """What the entries add up to, the slow way."""
    days = [datetime.fromtimestamp(each.time, UTC).date().isoformat() for each in entries]
    groups = {(day, each.key_id, each.tenant, each.route) for day, each in zip(days, entries, strict=True)}
    found = []
    for group in sorted(groups):
        mine = [e for day, e in zip(days, entries, strict=True) if (day, e.key_id, e.tenant, e.route) == group]
        day, key, tenant, route = group
        counts = {name: sum(getattr(e, name) for e in mine) for name in ("input", "cached", "output", "cost_micros")}
        found.append(Sum(day=day, key_id=key, tenant=tenant, route=route, calls=len(mine), **counts))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@asynccontextmanager
async def in_redis(url: str, **options: int) -> AsyncIterator[RedisLedger]:
    pipe = Pipe(url, 2.0)
    pipe.open()
    try:
        yield RedisLedger(pipe, **options)
    finally:
        await pipe.close()


@asynccontextmanager
async def in_a_file(folder: Path) -> AsyncIterator[Ledger]:
    store = LocalStore(folder / "keys.db")
    try:
        yield store.ledger
    finally:
        await store.close()


Open = Callable[[], AbstractAsyncContextManager[Ledger]]


@pytest.fixture(params=["redis", "local"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same ledger, as often as one likes."""
    if request.param == "local":
        return lambda: in_a_file(tmp_path)
    started: RedisServer = request.getfixturevalue("server")
    with Redis.from_url(started.url) as client:
        client.flushall()
    return lambda: in_redis(started.url)


@pytest.fixture
async def ledger(opened: Open) -> AsyncIterator[Ledger]:
    async with opened() as made:
        yield made


async def test_nothing_was_used_yet(ledger: Ledger) -> None:
    assert await ledger.sums("0000-01-01", "9999-12-31") == []
    assert await ledger.by_target() == {}
    await ledger.append("b-1", [])
    assert await ledger.sums("0000-01-01", "9999-12-31") == []


async def test_entries_are_summed_by_day_key_tenant_and_route(ledger: Ledger) -> None:
    entries = [
        entry(n=5),
        entry(n=7),
        entry(key="k2", n=1),
        entry(tenant="team-a", n=2),
        entry(route="other", n=3),
        entry(time=NOON + DAY, n=4),
    ]
    await ledger.append("b-1", entries[:3])
    await ledger.append("b-2", entries[3:])
    sums = await ledger.sums("2026-11-01", "2026-11-30")
    assert sums == expected(entries) and len(sums) == 5
    assert sums[1] == Sum(
        day="2026-11-22",
        key_id="k1",
        tenant="default",
        route="r",
        calls=2,
        input=12,
        cached=5,
        output=24,
        cost_micros=36,
    )


async def test_a_batch_that_comes_twice_counts_once(ledger: Ledger) -> None:
    entries = [entry(n=5), entry(time=NOON + DAY, n=7)]
    for _ in range(3):
        await ledger.append("boot-1", entries)
    await asyncio.gather(*(ledger.append("boot-2", entries) for _ in range(5)))
    assert await ledger.sums("2026-11-22", "2026-11-23") == expected(entries * 2)
    assert await ledger.by_target() == {"t": (24, 48)}


async def test_batches_of_different_names_both_count(ledger: Ledger) -> None:
    same = [entry(n=1)]
    for name in ("boot-1", "boot-10", "boot2-1"):
        await ledger.append(name, same)
    assert (await ledger.sums("2026-11-22", "2026-11-22"))[0].calls == 3


async def test_an_entry_counts_to_the_utc_day_of_its_time(ledger: Ledger) -> None:
    midnight = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    entries = [entry(time=midnight - 0.001, n=1), entry(time=midnight, n=2), entry(time=midnight + 86399.9, n=3)]
    await ledger.append("b", entries)
    assert [(each.day, each.input) for each in await ledger.sums("2026-11-30", "2026-12-01")] == [
        ("2026-11-30", 1),
        ("2026-12-01", 5),
    ]


async def test_sums_are_of_the_days_asked_for_both_included(ledger: Ledger) -> None:
    await ledger.append("b", [entry(time=NOON + i * DAY, n=i + 1) for i in range(40)])

    async def days(first: str, last: str) -> list[str]:
        return [each.day for each in await ledger.sums(first, last)]

    assert await days("2026-11-23", "2026-11-25") == ["2026-11-23", "2026-11-24", "2026-11-25"]
    assert await days("2026-11-22", "2026-11-22") == ["2026-11-22"]
    assert len(await days("2020-01-01", "2100-01-01")) == 40
    assert await days("2026-11-25", "2026-11-23") == []
    assert await days("2027-06-01", "2027-06-30") == []


async def test_names_may_hold_anything(ledger: Ledger) -> None:
    odd = ["a|b", "%7C", "a%7Cb|", "|", "", "ü ☃\n\t", "org/model:8b|x", '"{}"', "in|out"]
    entries = [entry(tenant=name, route=other, target=f"t{name}") for name in odd for other in odd]
    await ledger.append("b", entries)
    assert await ledger.sums("2026-11-22", "2026-11-22") == expected(entries)
    assert await ledger.by_target() == {f"t{name}": (len(odd), 2 * len(odd)) for name in odd}


async def test_targets_are_counted_for_ever_and_only_those_that_were_asked(ledger: Ledger) -> None:
    await ledger.append("b-1", [entry(target="a", n=5), entry(target="b", n=7), entry(target="", n=100)])
    assert await ledger.by_target() == {"a": (5, 10), "b": (7, 14)}
    await ledger.append("b-2", [entry(target="a", n=1, time=NOON + 40 * DAY), entry(target="a", n=2)])
    assert await ledger.by_target() == {"a": (8, 16), "b": (7, 14)}


async def test_everybody_reads_what_everybody_wrote(opened: Open) -> None:
    async with opened() as one, opened() as other:
        assert await other.by_target() == {}
        await asyncio.gather(
            *(each.append(f"{name}-{i}", [entry(n=1)]) for name, each in (("x", one), ("y", other)) for i in range(20))
        )
        for each in (one, other):
            assert (await each.sums("2026-11-22", "2026-11-22"))[0].calls == 40
            assert await each.by_target() == {"t": (40, 80)}


async def test_what_was_written_is_there_when_the_ledger_is_opened_again(opened: Open) -> None:
    async with opened() as one:
        await one.append("b-1", [entry(n=5)])
    async with opened() as again:
        await again.append("b-2", [entry(n=6)])
        assert (await again.sums("2026-11-22", "2026-11-22"))[0].input == 11
        assert await again.by_target() == {"t": (11, 22)}


async def test_a_full_batch_and_large_counts(ledger: Ledger) -> None:
    entries = [entry(key=f"k{i % 50}", route=f"r{i % 3}", n=10**12) for i in range(500)]
    await ledger.append("b", entries)
    assert await ledger.sums("2026-11-22", "2026-11-22") == expected(entries)


NAMES = st.sampled_from(["a", "b|", "%", "ü"])
ENTRIES = st.builds(
    entry,
    time=st.floats(NOON - 3 * DAY, NOON + 3 * DAY),
    key=NAMES,
    tenant=NAMES,
    route=NAMES,
    target=st.sampled_from(["", "a", "b|"]),
    n=st.integers(0, 10**6),
)


@given(st.lists(st.lists(ENTRIES, max_size=8), max_size=6), st.lists(st.integers(0, 5), max_size=6))
def test_whatever_is_written_and_repeated_the_sums_are_right(
    server: RedisServer, batches: list[list[Entry]], repeated: list[int]
) -> None:
    entries = [each for batch in batches for each in batch]

    async def check(ledger: Ledger) -> None:
        for index in [*range(len(batches)), *(i for i in repeated if i < len(batches))]:
            await ledger.append(f"b-{index}", batches[index])
        assert await ledger.sums("2026-01-01", "2026-12-31") == expected(entries)
        counted = await ledger.by_target()
        for target in {each.target for each in entries if each.target}:
            mine = [each for each in entries if each.target == target]
            tokens = sum(each.input for each in mine), sum(each.output for each in mine)
            assert counted.get(target, (0, 0)) == tokens

    async def both() -> None:
        with tempfile.TemporaryDirectory() as folder, Redis.from_url(server.url) as client:
            client.flushall()
            async with in_a_file(Path(folder)) as local:
                await check(local)
            async with in_redis(server.url) as ledger:
                await check(ledger)

    asyncio.run(both())

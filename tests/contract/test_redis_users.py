"""The users of docs/security.md: what a role has is enough, and what it lacks is told once, in words."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from contract.asks import asked
from contract.written import entry, record, unique
from harness.redis_flavours import flavours
from harness.redis_server import RedisServer, redis_server
from harness.redis_users import documented, make_user, refused
from msgspec import structs

from gateway.core.batches import Batch, Storage, StoredFile, Work
from gateway.core.types import AdminKey, Ask, Dimension, Entry, KeyRecord, Plan, TargetOrder, Tenant
from gateway.store import LEASE_SECONDS, StoreDown, periods
from gateway.store.redis import counters, invalidation, liveness
from gateway.store.redis.store import RedisStore

HERE = dict(flavours())
GATEWAY = documented()["gateway"]
UNTOLD = {"+client|setinfo", "+select"}
"""Without the first the client library goes on and says nothing; the second is of databases other than 0."""


@pytest.fixture(scope="module", params=[name for name in ("redis-6.2", "valkey-9") if name in HERE])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with redis_server(binary=HERE[request.param]) as started:
        yield started


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (counters, liveness):
        monkeypatch.setattr(module, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(invalidation, "RETRY_SECONDS", 0.02)


def dimensions(name: str) -> list[Dimension]:
    """One of each kind."""
    return [
        Dimension("rpm", "rate", f"rate:key:{name}:rpm", 100, 60.0, "key", "requests"),
        Dimension("tpm", "rate", f"rate:key:{name}:tpm", 1000, 60.0, "key", "tokens"),
        Dimension("concurrency", "lease", f"lease:key:{name}", 3, LEASE_SECONDS, "key", "calls"),
        *(
            Dimension("budget", "budget", f"budget:key:{name}:{period}:tokens", 1000, 60.0, "key", "tokens", period)
            for period in ("day", "week", "month")
        ),
    ]


async def admitted(store: RedisStore, name: str) -> None:
    """A call that is let in, used less than it asked for, and is settled."""
    wanted = dimensions(name)
    ask = Ask(unique(), Plan(((f"key:{name}", 1),), tuple(wanted)), [10] * len(wanted))
    verdict = await store.limits.admit(ask)
    assert verdict.denied is None and not verdict.stale
    settled = store.limits.settle(ask, verdict.at, [1 if each.unit == "calls" else 4 for each in wanted])
    assert settled is not None
    await settled
    ask = asked(name, wanted[2])
    verdict = await store.limits.admit(ask)
    given_back = store.limits.settle(ask, verdict.at, [1])
    assert given_back is not None
    await given_back


def work(store: RedisStore, name: str) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
    """All that a gateway asks the store for."""
    call = Entry(call_id=unique(), time=time.time(), key_id=name, tenant="t", route="r", target="a", input=1, output=1)
    today = periods.day(time.time())
    return [
        lambda: store.records.get(KeyRecord, name),
        lambda: store.records.get(Tenant, name),
        lambda: store.records.get(AdminKey, "none"),
        lambda: store.records.all(TargetOrder),
        lambda: store.records.version("key:none"),
        lambda: admitted(store, name),
        lambda: admitted(store, name),
        lambda: store.ledger.append(unique(), [call]),
        lambda: store.ledger.sums(today, today),
        store.ledger.by_target,
        lambda: store.board.exchange({"m": b"word"}),
        lambda: store.board.report(b"report"),
        lambda: store.homes.remember("t", "resp_1", "a", 60),
        lambda: store.homes.recall("t", "resp_1"),
        lambda: store.homes.forget("t", "resp_1"),
        store.board.reports,
        store.verify,
    ]


async def life(server: RedisServer, url: str) -> list[StoreDown]:
    """A worker starts, works and ends, on counters that are new; what went wrong."""
    name, failed = unique(), list[StoreDown]()
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    operator = RedisStore(server.url, timeout=30.0)
    await operator.open()
    for kind in (KeyRecord, Tenant, TargetOrder):
        await operator.records.put(record(kind, name), entry(f"test:{name}"))
    await operator.close()
    server.ask("DEL", f"{{tl}}:version:key:{name}")  # as if the counters were new
    server.ask("HSET", "{tl}:places", "gone", f"{liveness._host()} 999999999 1")
    store = RedisStore(url, timeout=30.0, boot=unique())
    await store.open()
    try:
        for step in work(store, name):
            try:
                await step()
            except StoreDown as error:
                failed.append(error)
        await asyncio.sleep(0.1)  # what is done in the background
    finally:
        await store.close()
    return failed


async def test_what_a_gateway_may_do_is_enough(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    url = make_user(server, "gateway")
    assert await life(server, url) == []
    assert refused(server) == []
    assert not caplog.messages


@pytest.mark.parametrize("rule", [rule for rule in GATEWAY if rule[0] in "+%~&" and rule not in UNTOLD])
async def test_what_a_gateway_may_not_do_is_told_once_and_by_name(
    server: RedisServer, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    strays = list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strays.append(str(context)))
    url = make_user(server, "gateway", without=rule)
    await life(server, url)
    gc.collect()
    await asyncio.sleep(0)
    assert strays == []
    named = rule.lstrip("+%R~&").lower()
    told = [line for line in caplog.messages if named in line.lower()]
    assert told, caplog.messages
    assert len(set(caplog.messages)) == len(caplog.messages), "told twice"
    assert "canary" not in caplog.text


async def test_a_user_that_may_not_choose_its_database_is_told_so(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(make_user(server, "gateway", without="+select", database=1), timeout=30.0)
    await store.open()
    with pytest.raises(StoreDown, match="'select'"):
        await store.ping()
    await store.close()
    assert [line for line in caplog.messages if "'select'" in line]


async def test_the_rules_of_batches_are_enough_for_files_and_batches(server: RedisServer) -> None:
    url = make_user(server, "gateway", "batches")
    name = unique()
    file = StoredFile(id=f"file-{name}", tenant=name, created=1, bytes=1, filename="f", purpose="batch", expires=2)
    batch = Batch(
        id=name,
        tenant=name,
        key_id="k",
        endpoint="/v1/embeddings",
        input_file=file.id,
        created=1,
        deadline=4e9,
        expires=5,
    )
    store = RedisStore(url, timeout=30.0, boot=name)
    await store.open()
    known = store.batches
    await known.add_file(file, Storage(files=1, bytes=1))
    await known.put(batch, Storage(batches=1))
    assert await known.file(name, file.id) == file and await known.files(name) == [file]
    assert await known.batch(name, name) == batch and batch in await known.batches() and batch in await known.active()
    await known.add_work(batch, [Work(kind="lines", count=1), Work(kind="finish")])
    taken = await known.take(batch)
    assert taken is not None and await known.take(batch) is None
    await known.hold(batch, [taken.id])
    await known.give_back(batch, [taken.id])
    assert await known.record(batch, "part", [(0, True), (1, False)], [taken.id])
    assert await known.recorded(batch, 0, 9) == {0, 1} and len(await known.parts(batch)) == 1
    assert (await known.progress(batch, close=True)).ended == 2
    assert not await known.interactive(False) and await known.interactive(True)
    files, batches = await known.expired(6)
    assert file in files and batch in batches
    await known.put(structs.replace(batch, version=2, status="completed"))
    await known.remove_file(file)
    await known.remove_batch(batch)
    await store.close()
    assert refused(server) == []

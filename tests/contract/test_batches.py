"""Files, batches and the work on them: the same in the state file and in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness.redis_server import RedisServer
from harness.redis_users import make_user, refused
from msgspec.structs import replace

from gateway.core.batches import Batch, Part, Progress, Storage, StoredFile, Work
from gateway.store import Batches, Conflict, QuotaReached, Store
from gateway.store.local import LocalStore
from gateway.store.redis.store import RedisStore

FILE = StoredFile(id="file-1", tenant="ours", created=1e9, bytes=10, filename="a.jsonl", purpose="batch", expires=2e9)
BATCH = Batch(
    id="batch_1",
    tenant="ours",
    key_id="k",
    endpoint="/v1/chat/completions",
    input_file="file-1",
    created=1e9,
    deadline=4e9,
    expires=5e9,
)
LINES = [Work(kind="lines", first=first, count=2, offset=10 * first, length=20) for first in (0, 2, 4)]


class Workers:
    """Stores of workers that share what they have."""

    def __init__(self, make: Callable[[str], Store], stack: AsyncExitStack) -> None:
        self._make, self._stack = make, stack

    async def worker(self, boot: str) -> Batches:
        store = self._make(boot)
        await store.open()
        self._stack.push_async_callback(store.close)
        return store.batches


@pytest.fixture(params=["memory", "redis"])
async def workers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield Workers(lambda boot: LocalStore(tmp_path / "keys.db", boot=boot), stack)
        else:
            server: RedisServer = request.getfixturevalue("own")
            url = make_user(server, "gateway", "batches")
            yield Workers(lambda boot: RedisStore(url, timeout=30.0, boot=boot), stack)
            assert refused(server) == [], "what batches ask for is in no rule of docs/security.md"


@pytest.fixture
async def batches(workers: Workers) -> Batches:
    return await workers.worker("one")


async def test_a_file_is_its_tenants(batches: Batches) -> None:
    await batches.add_file(FILE)
    await batches.add_file(later := replace(FILE, id="file-2", created=1e9 + 1))
    await batches.add_file(replace(FILE, id="file-3", tenant="theirs"))
    assert await batches.file("ours", "file-1") == FILE
    assert await batches.file("theirs", "file-1") is None
    assert await batches.files("ours") == [later, FILE]
    assert await batches.remove_file(FILE)
    assert not await batches.remove_file(FILE)
    assert await batches.files("ours") == [later]


@pytest.mark.parametrize(("most", "what"), [(Storage(files=1), "files"), (Storage(bytes=19), "bytes")])
async def test_a_tenant_stores_no_more_than_it_may(batches: Batches, most: Storage, what: str) -> None:
    await batches.add_file(FILE, most)
    await batches.add_file(FILE, most)  # the same once more is not another one
    with pytest.raises(QuotaReached, match=what):
        await batches.add_file(other := replace(FILE, id="file-2"), most)
    await batches.add_file(replace(FILE, id="file-3", tenant="theirs"), most)
    await batches.remove_file(FILE)
    await batches.add_file(other, most)


async def test_a_batch_is_written_version_by_version(batches: Batches) -> None:
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    await batches.put(BATCH, Storage(batches=1))
    batches.watch(changed)
    with pytest.raises(Conflict):
        await batches.put(BATCH)
    with pytest.raises(QuotaReached, match="batches"):
        await batches.put(replace(BATCH, id="batch_2"), Storage(batches=1))
    assert await batches.batch("ours", "batch_1") == BATCH
    assert await batches.batch("theirs", "batch_1") is None
    assert await batches.active() == [BATCH]
    await batches.put(done := replace(BATCH, version=2, status="completed"), Storage(batches=0))
    assert await batches.active() == []
    await batches.put(other := replace(BATCH, id="batch_2", created=1e9 + 1), Storage(batches=1))
    assert await batches.batches("ours") == await batches.batches() == [other, done]
    await batches.remove_batch(done)
    assert await batches.batches() == [other]


async def test_what_has_expired_is_found(batches: Batches) -> None:
    await batches.add_file(FILE)
    await batches.put(BATCH)
    assert await batches.expired(1.9e9) == ([], [])
    assert await batches.expired(2.1e9) == ([FILE], [])
    await batches.remove_file(FILE)
    assert await batches.expired(6e9) == ([], [BATCH])
    await batches.remove_batch(BATCH)
    assert await batches.expired(6e9) == ([], [])


async def test_each_piece_of_work_is_one_workers(batches: Batches) -> None:
    assert await batches.take(BATCH) is None
    await batches.put(BATCH)
    await batches.add_work(BATCH, [Work(kind="check")])
    await batches.add_work(BATCH, LINES)
    await batches.add_work(BATCH, LINES)  # once more, as whoever takes over from a dead worker does
    taken = [await batches.take(BATCH) for _ in range(5)]
    assert [each and each.work for each in taken] == [Work(kind="check"), *LINES, None]


async def test_to_write_the_results_takes_the_place_of_all_else(batches: Batches) -> None:
    await batches.put(BATCH)
    await batches.add_work(BATCH, LINES)
    taken = await batches.take(BATCH)
    assert taken is not None and taken.work == LINES[0]
    for _ in range(2):
        await batches.add_work(BATCH, [Work(kind="finish")])
    finish = await batches.take(BATCH)
    assert finish is not None and finish.work == Work(kind="finish")
    assert await batches.take(BATCH) is None
    await batches.give_back(BATCH, [taken.id, finish.id])
    assert await batches.take(BATCH) == finish
    assert await batches.take(BATCH) is None


async def test_work_that_is_given_back_is_another_workers(workers: Workers) -> None:
    one = await workers.worker("one")
    await one.put(BATCH)
    await one.add_work(BATCH, LINES[:1])
    taken = await one.take(BATCH)
    assert taken is not None
    await one.hold(BATCH, [taken.id])
    assert await one.take(BATCH) is None
    await one.give_back(BATCH, [taken.id])
    other = await workers.worker("other")
    again = await other.take(BATCH)
    assert again is not None and again == taken
    await one.give_back(BATCH, [taken.id])  # it is not its own any more
    assert await one.record(BATCH, "part", [], [taken.id])
    assert await other.take(BATCH) is None


async def test_a_line_keeps_its_first_answer(batches: Batches) -> None:
    await batches.put(BATCH)
    assert await batches.record(BATCH, "a", [(0, True), (9, False)], [])
    assert await batches.record(BATCH, "b", [(9, True), (1, True)], [])
    assert await batches.record(BATCH, "c", [(0, True)], [])
    assert await batches.parts(BATCH) == [Part("a"), Part("b", frozenset({9}))]
    assert await batches.progress(BATCH) == Progress(2, 1)
    assert await batches.recorded(BATCH, 0, 20) == {0, 1, 9}
    assert await batches.recorded(BATCH, 1, 8) == {1}
    assert await batches.recorded(BATCH, 9, 1) == {9}
    known = await batches.batch("ours", "batch_1")
    assert known is not None and (known.completed, known.failed) == (2, 1)


async def test_one_worker_cleans_once_a_day(batches: Batches) -> None:
    assert await batches.is_cleaner()
    assert not await batches.is_cleaner()


async def test_a_closed_batch_records_nothing(batches: Batches) -> None:
    await batches.put(BATCH)
    assert await batches.record(BATCH, "a", [(0, True)], [])
    assert await batches.progress(BATCH, close=True) == Progress(1, 0)
    assert not await batches.record(BATCH, "b", [(1, True)], [])
    assert await batches.parts(BATCH) == [Part("a")]
    await batches.forget_work(BATCH)
    assert await batches.parts(BATCH) == []
    assert await batches.progress(BATCH) == Progress()

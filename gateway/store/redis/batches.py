"""Files and batches in Redis: records by tenant, the work on a batch in a stream that all workers read as one group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from gateway.core.batches import Batch, Part, Progress, Storage, StoredFile, Work
from gateway.store.api import LEASE_SECONDS, Conflict, QuotaReached, Taken
from gateway.store.redis.connection import Pipe, Script, script
from gateway.store.redis.invalidation import Changes
from gateway.store.redis.records import CHANGED, TAG

AT_ONCE: Final = 500
"""Pieces of work, or expired things, in one step: admissions wait meanwhile."""
GONE_SECONDS: Final = 86_400
"""For so long after the last moment of a batch what is left of its work is kept, whatever has become of its workers."""
LEFT_MS: Final = 10**9
INTERACTIVE_MS: Final = 3000
"""For so long a worker's word holds that it has calls under way that somebody waits for."""
DAY_MS: Final = 86_400_000
_CLEANER = TAG + "batches:cleaner"
_INTERACTIVE = TAG + "batches:interactive"
_STORED, _EXPIRING = TAG + "stored", TAG + "expiring"
_ALL, _ACTIVE = TAG + "batches", TAG + "batches:active"
_IDS: Final = {"check": "0-1", "lines": "1-{}", "finish": "2-1"}
"""Of pieces of work: what is added later in a batch's life has a higher one, so that adding twice adds once."""

ADD_FILE, REMOVE_FILE, PUT, ADD_WORK = map(script, ("add_file", "remove_file", "put_batch", "add_work"))
TAKE, HOLD, RECORD = map(script, ("take", "hold", "record"))


class RedisBatches:
    """`boot` is the worker's name among those that share the work."""

    def __init__(self, pipe: Pipe, changes: Changes, boot: str, lease: float = LEASE_SECONDS) -> None:
        self._pipe, self._changes, self._boot = pipe, changes, boot
        self._lease_ms = int(lease * 1000)

    async def add_file(self, file: StoredFile, most: Storage | None = None) -> None:
        bounds = (-1, -1) if most is None else (_bound(most.files), _bound(most.bytes))
        fields = (file.id, msgspec.json.encode(file), file.bytes, file.tenant, file.expires, _name("file", file))
        reached = await self._run(ADD_FILE, [_files(file.tenant), _STORED, _EXPIRING], *fields, *bounds)
        if reached is not None:
            raise QuotaReached(reached.decode())

    async def file(self, tenant: str, id: str) -> StoredFile | None:
        raw = await self._pipe.call("HGET", _files(tenant), id)
        return None if raw is None else msgspec.json.decode(raw, type=StoredFile)

    async def files(self, tenant: str) -> list[StoredFile]:
        found = [msgspec.json.decode(raw, type=StoredFile) for raw in await self._pipe.call("HVALS", _files(tenant))]
        return sorted(found, key=lambda file: (file.created, file.id), reverse=True)

    async def remove_file(self, file: StoredFile) -> bool:
        fields = (file.id, file.bytes, file.tenant, _name("file", file))
        return bool(await self._run(REMOVE_FILE, [_files(file.tenant), _STORED, _EXPIRING], *fields))

    async def put(self, batch: Batch, most: Storage | None = None) -> None:
        name = f"{batch.tenant}/{batch.id}"
        keys = [_of(batch.tenant), _ALL, _ACTIVE, f"{_ACTIVE}:{batch.tenant}", _EXPIRING]
        fields = (batch.id, batch.version, msgspec.json.encode(batch), name, batch.created, int(batch.ended))
        bound = -1 if most is None else _bound(most.batches)
        done = await self._run(PUT, keys, *fields, batch.expires, bound, CHANGED, f"batch:{batch.id}")
        if done < 0:
            raise QuotaReached("batches")
        if not done:
            raise Conflict(f"batch:{batch.id}")

    async def batch(self, tenant: str, id: str) -> Batch | None:
        raw = await self._pipe.call("HGET", _of(tenant), id)
        return None if raw is None else await self._progressed(_batch(raw))

    async def batches(self, tenant: str | None = None) -> list[Batch]:
        if tenant is None:
            found = await self._named(await self._pipe.call("ZREVRANGE", _ALL, 0, -1))
        else:
            found = [_batch(raw) for raw in await self._pipe.call("HVALS", _of(tenant))]
        found.sort(key=lambda batch: (batch.created, batch.id), reverse=True)
        return list(await asyncio.gather(*map(self._progressed, found)))

    async def active(self) -> list[Batch]:
        found = await self._named(await self._pipe.call("SMEMBERS", _ACTIVE))
        return sorted(found, key=lambda batch: (batch.created, batch.id))

    async def remove_batch(self, batch: Batch) -> None:
        name = f"{batch.tenant}/{batch.id}"
        await self.forget_work(batch)
        gone = [
            ("SREM", _ACTIVE, name),
            ("SREM", f"{_ACTIVE}:{batch.tenant}", name),
            ("HDEL", _of(batch.tenant), batch.id),
            ("ZREM", _ALL, name),
            ("ZREM", _EXPIRING, f"batch:{name}"),  # last: what was done by halves is done again
        ]
        await asyncio.gather(*(self._pipe.call(*command) for command in gone))

    async def expired(self, now: float) -> tuple[list[StoredFile], list[Batch]]:
        names = await self._pipe.call("ZRANGEBYSCORE", _EXPIRING, "-inf", now, "LIMIT", 0, AT_ONCE)
        files, batches = list[StoredFile](), list[Batch]()
        for name in map(bytes.decode, names):
            kind, _, rest = name.partition(":")
            tenant, _, id = rest.rpartition("/")
            raw = await self._pipe.call("HGET", _files(tenant) if kind == "file" else _of(tenant), id)
            if raw is None:
                await self._pipe.call("ZREM", _EXPIRING, name)
            elif kind == "file":
                files.append(msgspec.json.decode(raw, type=StoredFile))
            else:
                batches.append(_batch(raw))
        return files, batches

    def watch(self, changed: Callable[[], None]) -> None:
        def heard(name: str | None) -> None:
            if name is None or name.startswith("batch:"):
                changed()

        self._changes.watch(heard)

    async def add_work(self, batch: Batch, work: Sequence[Work]) -> None:
        for start in range(0, len(work), AT_ONCE):
            pieces = list[str]()
            for each in work[start : start + AT_ONCE]:
                pieces += (
                    _IDS[each.kind].format(each.first + 1),
                    f"{each.first} {each.count} {each.offset} {each.length}",
                )
            await self._run(ADD_WORK, [_work(batch)], _gone(batch), *pieces)

    async def take(self, batch: Batch) -> Taken | None:
        got = await self._run(TAKE, [_work(batch)], self._boot, self._lease_ms)
        if got is None:
            return None
        id = got[0].decode()
        first, count, offset, length = map(int, got[1].split())
        kind = next(kind for kind, form in _IDS.items() if form[0] == id[0])
        work = Work(kind=kind, first=first, count=count, offset=offset, length=length)  # type: ignore[arg-type]
        return Taken(id, work)

    async def hold(self, batch: Batch, ids: Sequence[str]) -> None:
        await self._run(HOLD, [_work(batch)], self._boot, 0, *ids)

    async def give_back(self, batch: Batch, ids: Sequence[str]) -> None:
        await self._run(HOLD, [_work(batch)], self._boot, LEFT_MS, *ids)

    async def record(self, batch: Batch, part: str, lines: Sequence[tuple[int, bool]], done: Sequence[str]) -> bool:
        numbers = [number for line, good in lines for number in (line, int(good))]
        keys = [_work(batch), *_answers(batch)]
        return bool(await self._run(RECORD, keys, _gone(batch), part, len(lines), *numbers, *done))

    async def recorded(self, batch: Batch, first: int, count: int) -> set[int]:
        begin = first // 8
        bits = await self._pipe.call("GETRANGE", _answers(batch)[0], begin, (first + count - 1) // 8)
        return {
            number
            for number in range(first, min(first + count, 8 * (begin + len(bits))))
            if bits[number // 8 - begin] & 0x80 >> number % 8
        }

    async def progress(self, batch: Batch, *, close: bool = False) -> Progress:
        counts = _answers(batch)[2]
        if close:
            await self._pipe.call("HSET", counts, "closed", 1)
            await self._pipe.call("EXPIREAT", counts, _gone(batch))
        completed, failed = await self._pipe.call("HMGET", counts, "completed", "failed")
        return Progress(int(completed or 0), int(failed or 0))

    async def parts(self, batch: Batch) -> list[Part]:
        found = list[Part]()
        for raw in await self._pipe.call("LRANGE", _answers(batch)[1], 0, -1):
            name, _, void = raw.decode().partition(" ")
            found.append(Part(name, frozenset(map(int, void.split(","))) if void else frozenset()))
        return found

    async def interactive(self, mine: bool) -> bool:
        if mine:
            await self._pipe.call("SET", _INTERACTIVE, self._boot, "PX", INTERACTIVE_MS)
            return True
        return await self._pipe.call("GET", _INTERACTIVE) is not None

    async def is_cleaner(self) -> bool:
        return await self._pipe.call("SET", _CLEANER, self._boot, "NX", "PX", DAY_MS) is not None

    async def forget_work(self, batch: Batch) -> None:
        await self._pipe.call("DEL", _work(batch), *_answers(batch))

    def _run(self, what: Script, keys: list[str], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.shield(self._pipe.run(what, keys, *arguments))

    async def _named(self, names: Iterable[bytes]) -> list[Batch]:
        pairs = [name.decode().rpartition("/") for name in names]
        found = await asyncio.gather(*(self._pipe.call("HGET", _of(tenant), id) for tenant, _, id in pairs))
        return [_batch(raw) for raw in found if raw is not None]

    async def _progressed(self, batch: Batch) -> Batch:
        if batch.ended:
            return batch
        progress = await self.progress(batch)
        return structs.replace(batch, completed=progress.completed, failed=progress.failed)


def _batch(raw: bytes) -> Batch:
    return msgspec.json.decode(raw.partition(b" ")[2], type=Batch)


def _bound(most: int | None) -> int:
    return -1 if most is None else most


def _name(kind: str, of: StoredFile) -> str:
    return f"{kind}:{of.tenant}/{of.id}"


def _files(tenant: str) -> str:
    return f"{TAG}files:{tenant}"


def _of(tenant: str) -> str:
    return f"{TAG}batches:of:{tenant}"


def _work(batch: Batch) -> str:
    return f"{TAG}work:{batch.id}"


def _answers(batch: Batch) -> list[str]:
    return [f"{TAG}work:{batch.id}:{what}" for what in ("answered", "parts", "counts")]


def _gone(batch: Batch) -> int:
    return int(batch.deadline) + GONE_SECONDS

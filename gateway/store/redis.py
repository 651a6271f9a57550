"""The store that many gateways share: Redis, one script call an admission, all calls of a tick in one write."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha1
from importlib import resources
from typing import Any

import hiredis
import msgspec
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, NoScriptError, ReadOnlyError, ResponseError

from gateway.core.types import Ask, KeyRecord, Standing, Verdict
from gateway.store import LEASE_SECONDS, RENEW_SECONDS, KeyConflict, StoreDown

log = logging.getLogger("trunkline.store")

MICRO = 1_000_000
RECONNECT_SECONDS = (0.05, 1.0)
"""The first and the longest pause between attempts to connect; asks made meanwhile fail at once."""

# One hash tag, so that every key an admission touches lives in one slot of a cluster.
_KEY = "{tl}:key:"
_INDEX = "{tl}:keys"

_PUT_KEY = b"""
local stored = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if stored + 1 ~= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
return 1
"""


class Script:
    """A Lua script called by its digest; the text travels only when the server does not know it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.digest = sha1(text, usedforsecurity=False).hexdigest()


ADMIT = Script(resources.files("gateway.store").joinpath("admit.lua").read_bytes())
PUT_KEY = Script(_PUT_KEY)


class RedisStore:
    """Raises `StoreDown` when Redis does not answer within `timeout` seconds. A retry could charge twice: none."""

    def __init__(self, url: str, *, timeout: float = 0.25) -> None:
        self._pipe = Pipe(url, timeout)
        self._held: dict[str, Ask] = {}
        self._renewer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._pipe.open()
        self._renewer = asyncio.create_task(self._renew(), name="leases")

    async def close(self) -> None:
        if self._renewer is not None:
            self._renewer.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewer
        await self._pipe.close()

    async def ping(self) -> None:
        await self._pipe.call("PING")

    async def admit(self, ask: Ask) -> Verdict:
        keys: list[str] = [_KEY + ask.key_id]
        arguments: list[Any] = [ask.call_id, ask.key_version]
        for dimension in ask.dimensions:
            keys.append("{tl}:" + dimension.key)
            arguments += (dimension.kind, dimension.limit, int(dimension.window * MICRO), dimension.amount)
        answer = self._pipe.submit("EVALSHA", ADMIT.digest, len(keys), *keys, *arguments, script=ADMIT)
        try:
            granted = _verdict(await asyncio.shield(answer))
        except asyncio.CancelledError:
            # Redis may grant this yet: what nobody will use is handed back when the answer comes.
            answer.add_done_callback(lambda future: self._release_late(future, ask))
            raise
        if granted.denied is None and not granted.stale and any(d.kind == "lease" for d in ask.dimensions):
            self._held[ask.call_id] = ask
        return granted

    def release(self, ask: Ask) -> None:
        if self._held.pop(ask.call_id, None) is not None:
            self._give_back(ask)

    async def key(self, key_id: str) -> KeyRecord | None:
        raw = await self._pipe.call("HGET", _KEY + key_id, "record")
        return None if raw is None else msgspec.json.decode(raw, type=KeyRecord)

    async def keys(self) -> list[KeyRecord]:
        ids = await self._pipe.call("ZRANGE", _INDEX, 0, -1)
        records = [await self.key(key_id.decode()) for key_id in ids]
        return [record for record in records if record is not None]

    async def put_key(self, record: KeyRecord) -> None:
        fields = (record.id, record.version, msgspec.json.encode(record), record.created)
        arguments = (2, _KEY + record.id, _INDEX, *fields)
        if await self._pipe.call("EVALSHA", PUT_KEY.digest, *arguments, script=PUT_KEY) != 1:
            raise KeyConflict(record.id)

    def _release_late(self, answer: asyncio.Future[Any], ask: Ask) -> None:
        if not answer.cancelled() and answer.exception() is None and answer.result()[0] == 0:
            self._give_back(ask)

    def _give_back(self, ask: Ask) -> None:
        for dimension in ask.dimensions:
            if dimension.kind == "lease":
                self._pipe.post("ZREM", "{tl}:" + dimension.key, ask.call_id)

    async def _renew(self) -> None:
        """Keep the leases of living calls alive; those of a gateway that died expire."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if not self._held:
                continue
            try:
                seconds, micros = await self._pipe.call("TIME")
            except StoreDown:
                continue
            deadline = (int(seconds) + int(LEASE_SECONDS)) * MICRO + int(micros)
            for ask in self._held.values():
                for dimension in ask.dimensions:
                    if dimension.kind == "lease":
                        self._pipe.post("ZADD", "{tl}:" + dimension.key, "XX", deadline, ask.call_id)
                        self._pipe.post("PEXPIRE", "{tl}:" + dimension.key, int(LEASE_SECONDS * 2000))


def _verdict(answer: Sequence[int]) -> Verdict:
    status, denied, wait = answer[:3]
    if status == 2:
        return Verdict(stale=True)
    standings = tuple(Standing(answer[i], answer[i + 1] / MICRO) for i in range(3, len(answer), 2))
    return Verdict(standings, denied=denied - 1 if status == 1 else None, retry_after=wait / MICRO)


class _Command:
    __slots__ = ("answer", "parts", "script")

    def __init__(self, parts: tuple[Any, ...], script: Script | None, answer: asyncio.Future[Any]) -> None:
        self.parts, self.script, self.answer = parts, script, answer


class Pipe:
    """One connection, used by one long-lived task: whatever was submitted meanwhile goes out as one write.

    Callers await futures, so a caller that is cancelled never leaves a half-read answer on the connection.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._pool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0), protocol=2
        )
        self._timeout = timeout
        self._waiting: list[_Command] = []
        self._work = asyncio.Event()
        self._connection: Connection | None = None
        self._down: str | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="redis")

    async def close(self) -> None:
        if self._task is not None:
            with suppress(TimeoutError, StoreDown):
                async with asyncio.timeout(self._timeout):
                    await self.call("PING")  # answered after all that was queued before it
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    def submit(self, *parts: Any, script: Script | None = None) -> asyncio.Future[Any]:
        """Queue a command; the future ends in its answer, in `StoreDown`, or in the server's `ResponseError`."""
        answer = asyncio.get_running_loop().create_future()
        if self._down is not None:
            answer.set_exception(StoreDown(self._down))
        else:
            self._waiting.append(_Command(parts, script, answer))
            self._work.set()
        return answer

    def post(self, *parts: Any) -> None:
        """Queue a command whose answer nobody needs; lost while Redis is down."""
        self.submit(*parts).add_done_callback(asyncio.Future.exception)

    async def call(self, *parts: Any, script: Script | None = None) -> Any:
        return await asyncio.shield(self.submit(*parts, script=script))

    async def _run(self) -> None:
        pause = RECONNECT_SECONDS[0]
        while True:
            try:
                await self._connect()
                pause = RECONNECT_SECONDS[0]
                while True:
                    await self._work.wait()
                    self._work.clear()
                    batch, self._waiting = self._waiting, []
                    await self._exchange(batch)
            except Exception as error:  # whatever it is, the task must live: every call depends on it
                self._fail(error)
            await self._disconnect()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(2 * pause, RECONNECT_SECONDS[1])

    async def _connect(self) -> None:
        self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(self._timeout):
            await self._connection.connect()
        if self._down is not None:
            log.warning("Redis answers again")
        self._down = None

    async def _exchange(self, batch: list[_Command]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                unknown = await self._send(batch)
                if unknown:  # a restarted server: the second time with the text
                    for command in unknown:
                        assert command.script is not None
                        command.parts = ("EVAL", command.script.text, *command.parts[2:])
                        command.script = None
                    await self._send(unknown)
        except BaseException as error:
            for command in batch:
                if not command.answer.done():
                    command.answer.set_exception(StoreDown(f"Redis did not answer: {error!r}"))
            raise

    async def _send(self, batch: list[_Command]) -> list[_Command]:
        """Write all, read all; returns those whose script the server does not know."""
        assert self._connection is not None
        # hiredis packs a script call in a sixth of the time that redis-py's own code takes.
        packed = b"".join([hiredis.pack_command(command.parts) for command in batch])
        await self._connection.send_packed_command(packed, check_health=False)
        unknown = []
        for command in batch:
            try:
                answer = await self._connection.read_response(disable_decoding=True)
            except ResponseError as error:
                if command.script is not None and isinstance(error, NoScriptError):
                    unknown.append(command)
                elif isinstance(error, ReadOnlyError):
                    raise ConnectionError("this Redis is a replica now") from error
                elif not command.answer.done():
                    command.answer.set_exception(StoreDown(f"Redis refused: {error}"))
                continue
            if not command.answer.done():
                command.answer.set_result(answer)
        return unknown

    def _fail(self, error: BaseException) -> None:
        if self._down is None:
            log.warning("Redis does not answer: %r", error)
        self._down = f"Redis does not answer: {error!r}"
        failed, self._waiting = self._waiting, []
        for command in failed:
            if not command.answer.done():
                command.answer.set_exception(StoreDown(self._down))

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(Exception):
                await connection.disconnect(nowait=True)

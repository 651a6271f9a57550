"""One connection to Redis for everybody: what was asked for in one turn of the event loop goes out as one write."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha1
from importlib import resources
from typing import Any

import hiredis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError, MovedError, NoScriptError, ReadOnlyError, ResponseError

from gateway.store import StoreDown
from gateway.store.connect import Connector
from gateway.store.patience import Patience

log = logging.getLogger("trunkline.store")

RECONNECT_SECONDS = (0.05, 1.0)
"""The first and the longest pause between attempts to connect; asks made meanwhile fail at once."""
SLOW_SHARE = 0.4
"""An exchange that takes this part of the time-out is slow; three in a row that add up to `SLOW_SECONDS` are an
outage: a store that delays every call is worse than none."""
SLOW_EXCHANGES, SLOW_SECONDS = 3, 0.5
MAX_MOVES = 5
MOST = 128
"""Commands in one exchange: the time-out is for these, not for all that is waiting."""


class Script:
    """A Lua script called by its digest; the text travels only when the server does not know it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.digest = sha1(text, usedforsecurity=False).hexdigest()


def script(*names: str) -> Script:
    """The script whose text is that of these files beside this one, one after the other."""
    folder = resources.files("gateway.store")
    return Script(b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names))


class _Command:
    __slots__ = ("answer", "parts", "script")

    def __init__(self, parts: tuple[Any, ...], script: Script | None, answer: asyncio.Future[Any]) -> None:
        self.parts, self.script, self.answer = parts, script, answer


class Pipe:
    """One connection, used by one long-lived task.

    Callers await futures, so a caller that is cancelled never leaves a half-read answer on the connection. Nothing is
    sent twice unless the server said that it had not done it.
    """

    def __init__(self, url: str, timeout: float, connected: Callable[[], None] = lambda: None) -> None:
        self._connector, self._timeout, self._connected = Connector(url, timeout), timeout, connected
        self._waiting: list[_Command] = []
        self._work = asyncio.Event()
        self._connection: Connection | None = None
        self._down: str | None = None
        self._slow, self._slow_seconds, self._moves = 0, 0.0, 0
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

    @property
    def down(self) -> bool:
        """The server does not answer; asks fail at once."""
        return self._down is not None

    def submit(self, *parts: Any, script: Script | None = None) -> asyncio.Future[Any]:
        """Queue a command; the future ends in its answer, in `StoreDown`, or in the server's `ResponseError`."""
        answer = asyncio.get_running_loop().create_future()
        if self._down is not None:
            answer.set_exception(StoreDown(self._down))
        else:
            self._waiting.append(_Command(parts, script, answer))
            self._work.set()
        return answer

    def post(self, *parts: Any) -> asyncio.Future[Any]:
        """Queue a command whose answer nobody needs; lost while Redis is down."""
        answer = self.submit(*parts)
        answer.add_done_callback(asyncio.Future.exception)
        return answer

    def run(self, script: Script, keys: list[str], *arguments: Any) -> asyncio.Future[Any]:
        """Queue a script call."""
        return self.submit("EVALSHA", script.digest, len(keys), *keys, *arguments, script=script)

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
                    while self._waiting:
                        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                        await self._exchange(batch)
            except _Moved:
                pass  # what was asked for waits for the new connection
            except Exception as error:  # whatever it is, the task must live: every call depends on it
                self._fail(error)
            await self._disconnect()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(2 * pause, RECONNECT_SECONDS[1])

    async def _connect(self) -> None:
        async with asyncio.timeout(self._timeout):
            self._connection = await self._connector.connect()
        if self._down is not None:
            await self._look()
            log.warning("Redis answers again")
        self._down = None
        if self._waiting:
            self._work.set()
        self._connected()

    async def _look(self) -> None:
        """Before calls are let in again the server must answer quickly, and take writes."""
        assert self._connection is not None
        async with asyncio.timeout(self._timeout * SLOW_SHARE):
            await self._connection.send_packed_command(hiredis.pack_command(("PING",)), check_health=False)
            await self._connection.read_response(disable_decoding=True)

    async def _exchange(self, batch: list[_Command]) -> None:
        try:
            async with Patience(self._timeout) as patience:
                unknown = await self._send(batch)
                if unknown:  # a restarted server: the second time with the text
                    for command in unknown:
                        assert command.script is not None
                        command.parts = ("EVAL", command.script.text, *command.parts[2:])
                        command.script = None
                    await self._send(unknown)
        except _Moved:
            raise
        except BaseException as error:
            for command in batch:
                if not command.answer.done():
                    command.answer.set_exception(StoreDown(f"Redis did not answer: {error!r}"))
            raise
        self._watch_time(patience.spent)

    def _watch_time(self, seconds: float) -> None:
        if seconds < self._timeout * SLOW_SHARE:
            self._slow, self._slow_seconds = 0, 0.0
            return
        self._slow, self._slow_seconds = self._slow + 1, self._slow_seconds + seconds
        if self._slow >= SLOW_EXCHANGES and self._slow_seconds >= SLOW_SECONDS:
            self._slow, self._slow_seconds = 0, 0.0
            raise TimeoutError("answers are slow")

    async def _send(self, batch: list[_Command]) -> list[_Command]:
        """Write all, read all; returns those whose script the server does not know."""
        assert self._connection is not None
        # hiredis packs a script call in a sixth of the time that redis-py's own code takes.
        packed = b"".join([hiredis.pack_command(command.parts) for command in batch])
        await self._connection.send_packed_command(packed, check_health=False)
        unknown, moved, to = [], [], ""
        for command in batch:
            try:
                answer = await self._connection.read_response(disable_decoding=True)
            except ResponseError as error:
                if command.script is not None and isinstance(error, NoScriptError):
                    unknown.append(command)
                elif isinstance(error, MovedError):
                    moved.append(command)
                    to = f"{error.host}:{error.port}"
                elif isinstance(error, ReadOnlyError):
                    raise ConnectionError("this Redis is a replica now") from error
                elif not command.answer.done():
                    command.answer.set_exception(StoreDown(f"Redis refused: {error}"))
                continue
            if not command.answer.done():
                command.answer.set_result(answer)
        if moved:  # not done there, so it may be asked for again at the right node
            self._moves += 1
            if self._moves > MAX_MOVES:
                raise ConnectionError("the cluster's nodes send us round in circles")
            self._waiting = moved + unknown + self._waiting
            self._connector.moved(to)
            raise _Moved
        self._moves = 0
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


class _Moved(Exception):
    """The slot of our keys is at another node."""

"""One connection to Redis for everybody: what is asked for in one turn of the event loop goes out as one write."""

from __future__ import annotations

import asyncio
import logging
import random
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha1
from importlib import resources
from typing import Any

import hiredis

from gateway.store import StoreDown
from gateway.store.redis.connect import Connector
from gateway.store.redis.patience import Patience, in_time

log = logging.getLogger("trunkline.store")

RECONNECT_SECONDS = (0.05, 1.0)
"""The first and the longest pause between attempts to connect; asks made meanwhile fail at once."""
WINDOW = 64
"""Commands that the server has at a time; the others wait here. All gateways together must not put a burst's thousands
before it at once: nobody would hear of it until it had worked through the others'. 20 ms away it is 3,000 a second."""
MAX_MOVES = 5
"""Times in a row that a cluster may send us to another node."""


class Script:
    """A Lua script called by its digest; the text travels only when the server does not know it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.digest = sha1(text, usedforsecurity=False).hexdigest()


def script(*names: str) -> Script:
    """The script whose text is that of these files beside this one, one after the other."""
    folder = resources.files("gateway.store.redis")
    return Script(b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names))


class _Command:
    __slots__ = ("answer", "parts", "queued", "script", "turn")

    def __init__(self, parts: tuple[Any, ...], script: Script | None, answer: asyncio.Future[Any]) -> None:
        self.parts, self.script, self.answer = parts, script, answer
        self.turn, self.queued = 0, False
        """When it was sent, in the turns of the pipe's patience; whether the server had a lot to do before it."""


class Pipe:
    """Commands in, answers out in the same order; whoever asks does not wait for others' answers before asking.

    An answer goes into its future, so a caller that is cancelled never leaves a half-read answer on the connection.
    Nothing is sent twice unless the server said that it had not done it. When the server answers nothing for `timeout`
    seconds, it is an outage: all that was asked for fails with `StoreDown`, and whatever is asked for fails at once
    until the server answers again.
    """

    def __init__(self, url: str, timeout: float, connected: Callable[[], None] = lambda: None) -> None:
        self._connector, self._timeout, self._connected = Connector(url, timeout), timeout, connected
        self._waiting: deque[_Command] = deque()
        self._sent: deque[_Command] = deque()
        self._wire: _Wire | None = None
        self._flushing = False
        self._down: str | None = None
        self._lost: asyncio.Future[Exception] | None = None
        self._moves, self._moving = 0, False
        self._patience = Patience(timeout, self._sent_since, self._arrived, self._fail)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to connect."""
        self._task = asyncio.create_task(self._run(), name="redis")

    async def close(self) -> None:
        """Wait for what was asked for, if the server answers, and stop."""
        if self._task is not None:
            with suppress(StoreDown):
                await self.call("PING")  # answered after all that was asked before it
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        wire = self._wire
        self._disconnect()
        if wire is not None:
            await asyncio.wait([wire.closed], timeout=1)

    @property
    def down(self) -> bool:
        """The server does not answer; asks fail at once."""
        return self._down is not None

    def submit(self, *parts: Any, script: Script | None = None) -> asyncio.Future[Any]:
        """Queue a command; the future ends in its answer, or in `StoreDown` if there is none or it is an error."""
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        if self._down is not None:
            answer.set_exception(StoreDown(self._down))
            return answer
        self._waiting.append(_Command(parts, script, answer))
        self._flush_soon()
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
        """Queue a command and wait; raises `StoreDown`."""
        return await asyncio.shield(self.submit(*parts, script=script))

    def answered(self, reply: Any) -> None:
        """The answer to the oldest command that has none."""
        command = self._sent.popleft()
        self._patience.ended(command.turn, queued=command.queued)
        if isinstance(reply, hiredis.ReplyError):
            self._refused(command, str(reply))
        else:
            self._moves = self._moves if self._moving else 0
            if not command.answer.done():
                command.answer.set_result(reply)
        if self._moving and not self._sent:
            self._leave(_Moved())
        elif self._waiting:
            self._flush_soon()

    def lost(self, wire: _Wire, error: Exception) -> None:
        """The connection has ended, by whose doing ever."""
        if wire is self._wire:
            self._fail(error)

    def _refused(self, command: _Command, said: str) -> None:
        word, _, rest = said.partition(" ")
        if word == "NOSCRIPT" and command.script is not None:  # a restarted server: the second time with the text
            command.parts = ("EVAL", command.script.text, *command.parts[2:])
            command.script = None
            self._waiting.append(command)
        elif word == "MOVED":  # not done there, so it may be asked for again at the right node
            self._moves += 1
            self._waiting.append(command)  # first: whatever the server says next, this one is not forgotten
            self._connector.moved(rest)
            if self._moves > MAX_MOVES * (1 + min(len(self._waiting), WINDOW)):
                self._fail(ConnectionError("the cluster's nodes send us round in circles"))
            else:
                self._moving = True  # once what was sent is answered; nothing more is sent to the wrong node
        elif word == "READONLY":
            self._sent.appendleft(command)
            self._fail(ConnectionError("this Redis is a replica now"))
        elif not command.answer.done():
            command.answer.set_exception(StoreDown(f"Redis refused: {said}"))

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._wire is None or self._moving or not self._waiting:
            return  # what waits is sent when there is a connection
        ahead = len(self._sent)
        batch = [self._waiting.popleft() for _ in range(min(WINDOW - ahead, len(self._waiting)))]
        if not batch:
            return  # the next answer makes room
        turn, queued = self._patience.began(), ahead > WINDOW // 2
        for command in batch:
            command.turn, command.queued = turn, queued
        self._sent.extend(batch)
        # hiredis packs a script call in a sixth of the time that redis-py's own code takes.
        self._wire.write(b"".join([hiredis.pack_command(command.parts) for command in batch]))

    def _sent_since(self) -> int | None:
        """The turn in which the oldest command without an answer was sent."""
        return self._sent[0].turn if self._sent else None

    def _arrived(self) -> bool:
        """There is something to read that we have not come to read."""
        return self._wire is not None and self._wire.readable

    async def _run(self) -> None:
        pause = RECONNECT_SECONDS[0]
        while True:
            self._lost = asyncio.get_running_loop().create_future()
            try:
                await self._connect()
                pause = RECONNECT_SECONDS[0]
                error = await self._lost
            except Exception as failed:  # whatever it is, the task must live: every call depends on it
                error = failed
                self._fail(failed)
            if isinstance(error, _Moved):
                continue
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(2 * pause, RECONNECT_SECONDS[1])

    async def _connect(self) -> None:
        connection = await in_time(self._connector.connect(), self._timeout)
        self._wire = _Wire(connection, self)
        if self._down is not None:
            await self._look()
            log.warning("Redis answers again")
        self._down = None
        self._flush()
        self._connected()

    async def _look(self) -> None:
        """Before calls are let in again the server must answer quickly."""
        command = _Command(("PING",), None, asyncio.get_running_loop().create_future())
        self._waiting.append(command)
        self._flush()
        await in_time(command.answer, self._patience.slow)

    def _fail(self, error: Exception) -> None:
        if self._down is None:
            log.warning("Redis does not answer: %r", error)
        self._down = f"Redis does not answer: {error!r}"
        failed = [*self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        self._leave(error)
        for command in failed:
            if not command.answer.done():
                command.answer.set_exception(StoreDown(self._down))
                command.answer.exception()  # somebody may be waiting, and nobody may

    def _leave(self, error: Exception) -> None:
        self._disconnect()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)

    def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        self._moving = False
        if wire is not None:
            wire.close()


class _Wire(asyncio.Protocol):
    """The connection once it stands: redis-py has made it, from here on only bytes and hiredis are in the way."""

    def __init__(self, connection: Any, pipe: Pipe) -> None:
        self._pipe, self._reader = pipe, hiredis.Reader()
        # redis-py must not touch it any more, and its writer would close it when collected.
        self._writer = connection._writer
        connection._reader = connection._writer = None
        self._writer.transport.set_protocol(self)
        self.write = self._writer.transport.write
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False and not self._writer.transport.is_closing():
                self._pipe.answered(reply)
        except Exception as error:  # nonsense, or more answers than questions
            self._pipe.lost(self, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)
        self._pipe.lost(self, exc or ConnectionError("Redis closed the connection"))

    @property
    def readable(self) -> bool:
        """Bytes, or the connection's end, lie in the socket."""
        poll = select.poll()
        poll.register(self._writer.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._writer.transport.abort()


class _Moved(Exception):
    """The slot of our keys is at another node."""

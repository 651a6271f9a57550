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
import redis
from msgspec import Struct

from gateway.store import NotAllowed, StoreDown, shown
from gateway.store.redis.answer_timer import AnswerTimer, in_time
from gateway.store.redis.connect import Connector
from gateway.store.redis.permissions import denial, is_denied

log = logging.getLogger("trunkline.store")

RECONNECT_SECONDS = (0.05, 1.0)
"""The first and the longest pause between attempts to connect; asks made meanwhile fail at once."""
WINDOW = 64
"""Commands that the server has at a time; the others wait here. All gateways together must not put a burst's thousands
before it at once: nobody would hear of it until it had worked through the others'. 20 ms away it is 3,000 a second."""
MAX_MOVES = 5
"""Times in a row that a cluster may send us to another node."""


# hiredis packs a command in a sixth of the time that redis-py's own code takes; its stub knows single words only.
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


class Script:
    """A Lua script called by its digest; the text travels only when the server does not know it."""

    def __init__(self, text: bytes, name: str = "") -> None:
        self.text, self.name = text, name
        self.digest = sha1(text, usedforsecurity=False).hexdigest()
        self.by_digest = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % self.digest.encode()
        """How a call of it begins on the wire, behind the number of its parts."""
        self.by_text = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(text), text)


def script(*names: str) -> Script:
    """The script whose text is that of these files beside this one, one after the other; it is called as the last."""
    folder = resources.files("gateway.store.redis")
    return Script(b"\n".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names), names[-1])


def packed(*parts: Any) -> bytes:
    """Parts of a command as they go onto the wire, without the number of them that begins it."""
    data = pack(parts)
    return data[data.index(b"\n") + 1 :]


class Command(Struct, eq=False):
    """What was asked for: its bytes, and what becomes of it."""

    data: bytes
    script: Script | None
    answer: asyncio.Future[Any]
    """Whoever waits for it may be cancelled, and the future with it."""
    ended: Callable[[Command, Any], None] | None = None
    """Is called with the answer, or with the exception if there is none, whatever has become of the future."""
    about: Any = None
    """For `ended`."""
    turn: int = -1
    """When it was sent, in the turns of the pipe's timer; -1: not yet."""
    queued: bool = False
    """The server had a lot to do before it."""
    late: Any = None
    """The answer or the exception, if the future had been cancelled when it came."""

    @property
    def sent(self) -> bool:
        """The server may have done it."""
        return self.turn >= 0


class Pipe:
    """Commands in, answers out in the same order; whoever asks does not wait for others' answers before asking.

    An answer goes into its future, so a caller that is cancelled never leaves a half-read answer on the connection.
    Nothing is sent twice unless the server said that it had not done it. When the server answers nothing for `timeout`
    seconds, it is an outage: all that was asked for fails with `StoreDown`, and whatever is asked for fails at once
    until the server answers again.
    """

    def __init__(self, url: str, timeout: float, connected: Callable[[], None] = lambda: None) -> None:
        self._connector, self._timeout, self._connected = Connector(url, timeout), timeout, connected
        self._where = shown(url)
        self._waiting: deque[Command] = deque()
        self._sent: deque[Command] = deque()
        self._wire: _Wire | None = None
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one it was opened in: to ask for it costs as much as to make a future."""
        self._down: str | None = None
        self.has_answered = False
        """There was a connection to it once."""
        self._lost: asyncio.Future[Exception] | None = None
        self._moves, self._moving = 0, False
        self._denied: set[str] = set()
        """What the log has of missing permissions."""
        self._timer = AnswerTimer(timeout, self._sent_since, self._arrived, self._fail)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to connect."""
        self._loop = asyncio.get_running_loop()
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

    def send(
        self,
        data: bytes,
        script: Script | None = None,
        ended: Callable[[Command, Any], None] | None = None,
        about: Any = None,
    ) -> Command:
        """Queue a command's bytes; its future ends in the answer, or in `StoreDown` if there is none or it is an error.

        `ended`, if given, is called with the same, `about` is for its use.
        """
        loop = self._loop or asyncio.get_running_loop()
        command = Command(data, script, loop.create_future(), ended, about)
        if self._down is not None:
            _end(command, StoreDown(self._down))
            return command
        self._waiting.append(command)
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        return command

    def submit(self, *parts: Any) -> asyncio.Future[Any]:
        """Queue a command; the future ends in its answer, or in `StoreDown` if there is none or it is an error."""
        return self.send(pack(parts)).answer

    def run(self, script: Script, keys: list[str], *arguments: Any) -> asyncio.Future[Any]:
        """Queue a script call."""
        data = b"*%d\r\n%b%b" % (3 + len(keys) + len(arguments), script.by_digest, packed(len(keys), *keys, *arguments))
        return self.send(data, script).answer

    async def call(self, *parts: Any) -> Any:
        """Queue a command and wait; raises `StoreDown`."""
        return await self.submit(*parts)

    def lost(self, wire: _Wire, error: Exception) -> None:
        """The connection has ended, by whose doing ever."""
        if wire is self._wire:
            self._fail(error)

    def _refused(self, command: Command, said: str) -> None:
        word, _, rest = said.partition(" ")
        script = command.script
        if word == "NOSCRIPT" and script is not None and script.by_digest in command.data:
            command.data = command.data.replace(script.by_digest, script.by_text, 1)  # a server that was restarted
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
        elif is_denied(said):
            why = denial(said, command.data, *((script.name, script.text) if script else ()))
            if why not in self._denied:
                self._denied.add(why)
                log.warning("%s: docs/security.md has the rules of each role", why)
            _end(command, NotAllowed(why))
        else:
            _end(command, StoreDown(f"Redis refused: {said}"))

    def _go_on(self) -> None:
        """Answers have been read: there is room for more, or it is time to follow the cluster to another node."""
        if not self._moving:
            self._moves = 0
        elif not self._sent:
            self._leave(_Moved())
        if self._waiting and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        waiting, sent, timer = self._waiting, self._sent, self._timer
        if self._wire is None or self._moving or not waiting:
            return  # what waits is sent when there is a connection
        ahead = len(sent)
        if ahead >= WINDOW:
            return  # the next answer makes room
        turn, queued = timer.turn if timer.running else timer.began(), ahead > WINDOW // 2
        batch = []
        for _ in range(min(WINDOW - ahead, len(waiting))):
            command = waiting.popleft()
            command.turn, command.queued = turn, queued
            sent.append(command)
            batch.append(command.data)
        self._wire.write(b"".join(batch))

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
        self._wire, self.has_answered = _Wire(connection, self), True
        if self._down is not None:
            await self._look()
            log.warning("Redis answers again")
        self._down = None
        self._flush()
        self._connected()

    async def _look(self) -> None:
        """Before calls are let in again the server must answer quickly."""
        command = Command(pack(("PING",)), None, asyncio.get_running_loop().create_future())
        self._waiting.append(command)
        self._flush()
        await in_time(command.answer, self._timer.slow)

    def _fail(self, error: Exception) -> None:
        if self._down is None:
            log.warning("Redis does not answer at %s: %s", self._where, _reason(error))
        self._down = f"Redis does not answer at {self._where}: {_reason(error)}"
        failed = [*self._sent, *self._waiting]
        self._sent.clear()
        self._waiting.clear()
        self._leave(error)
        for command in failed:
            _end(command, StoreDown(self._down))

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
        """Answers have come: each is that to the oldest command that has none."""
        pipe, reader = self._pipe, self._reader
        sent, timer = pipe._sent, pipe._timer
        try:
            reader.feed(data)
            while pipe._wire is self and (reply := reader.gets()) is not False:
                command = sent.popleft()
                if command.turn == timer.turn and not timer.slow_answers:
                    timer.answered = command.turn
                else:
                    timer.ended(command.turn, queued=command.queued)
                if isinstance(reply, hiredis.ReplyError):
                    pipe._refused(command, str(reply))
                    continue
                if command.answer.done():
                    command.late = reply
                else:
                    command.answer.set_result(reply)
                if command.ended is not None:
                    command.ended(command, reply)
            if pipe._waiting or pipe._moves:
                pipe._go_on()
        except Exception as error:  # nonsense, or more answers than questions
            pipe.lost(self, error)

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


def _end(command: Command, error: StoreDown) -> None:
    """There will be no answer."""
    if not command.answer.done():
        command.answer.set_exception(error)
        command.answer.exception()  # somebody may be waiting, and nobody may
    else:
        command.late = error
    if command.ended is not None:
        command.ended(command, error)


class _Moved(Exception):
    """The slot of our keys is at another node."""


def _reason(error: Exception) -> str:
    """Why, in words; for some errors their kind is all that there is."""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "no answer in time"
    return str(error).strip().rstrip(".") or type(error).__name__

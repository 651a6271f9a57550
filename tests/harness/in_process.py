"""A whole gateway in the test's own process, between a client and targets without sockets.

All of it is real but the three ends: bytes that a client sends are given to its connection, a connection to a target is
a pipe to the scripted upstream, and records of calls are kept in a list. So what a target sends in one write arrives in
one piece, and a thousand cases take seconds. It runs only while a test waits for something.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from harness.client_connection import Kept
from harness.gateway_process import Issued
from harness.upstream import ScriptedConnection, Upstream

from gateway.admin import Registrar
from gateway.app import gateway as app
from gateway.config import Settings
from gateway.config.source import Source
from gateway.core.clock import SystemClock
from gateway.http.connection import Connection
from gateway.http.listener import Listener
from gateway.metering.metrics import exposition
from gateway.upstream.connection import Connection as ToTarget
from gateway.upstream.origin import Origin

T = TypeVar("T")
SECONDS = 60
"""Guards against waiting for ever."""
TURNS = 12
"""Of the loop, in which everything happens that is to happen at once."""


class Pipe(asyncio.Transport):
    """One end of a connection; what is written arrives at the other end's protocol, each write by itself."""

    _numbers = count(1)

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("in process", next(self._numbers))})
        self.loop, self.protocol = asyncio.get_running_loop(), protocol
        self.peer: Pipe
        self._coming: deque[bytes | Exception | None] = deque()
        """What the protocol has not been given; None is the end, an exception the way in which it broke."""
        self._closing = self._paused = False

    @property
    def quiet(self) -> bool:
        """Nothing has come that nobody has been given, and nothing is to come to an end."""
        return not self._coming and not self._closing

    def write(self, data: Any) -> None:
        if not self._closing:
            self.peer._come(bytes(data))

    def writelines(self, data: Any) -> None:
        self.write(b"".join(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._end(None)
        self.peer._come(None)

    abort = close

    def reset(self) -> None:
        """Have the other end see a TCP reset, after all that was written."""
        self._end(None)
        self.peer._come(ConnectionResetError(104, "Connection reset by peer"))

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        for _ in self._coming:
            self.loop.call_soon(self._hand_on)

    def get_write_buffer_size(self) -> int:
        return 0

    def recv(self, size: int, flags: int) -> bytes:
        """Look at what has come, as at a socket."""
        if self.quiet:
            raise BlockingIOError
        return b"?"

    def _come(self, data: bytes | Exception | None) -> None:
        if not self._closing:
            self._coming.append(data)
            self.loop.call_soon(self._hand_on)

    def _hand_on(self) -> None:
        if self._coming and not self._paused and not self._closing:
            data = self._coming.popleft()
            if isinstance(data, bytes):
                self.protocol.data_received(data)
            elif data is not None:
                self._end(data)
            elif not self.protocol.eof_received():
                self._end(None)

    def _end(self, error: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self.loop.call_soon(self.protocol.connection_lost, error)


class Dialer:
    """Connects to the scripted upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def connect(self, origin: Origin, make: Callable[[], ToTarget], until: float) -> ToTarget:
        """As `gateway.upstream.dial.Dialer` does it."""
        ours, theirs = make(), ScriptedConnection(self._upstream, pause=0)
        here, there = Pipe(ours), Pipe(theirs)
        here.peer, there.peer = there, here
        theirs.connection_made(there)
        ours.connection_made(here)
        ours.socket = here  # type: ignore[assignment] # only looked at
        return ours

    def close(self) -> None: ...


class Records(list[bytes]):
    """Keeps the lines of calls."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    write = list.append

    def close(self) -> None: ...


class Client(Kept):
    """A client's connection, and what came over it."""

    def __init__(self, gateway: InProcess, call: bytes) -> None:
        super().__init__()
        self._gateway, self._written = gateway, asyncio.Event()
        self.connection = Connection(gateway.listener)
        self.connection.connection_made(self)
        self.connection.data_received(call)

    def write(self, data: Any) -> None:
        super().write(data)
        self._written.set()

    def close(self) -> None:
        super().close()
        self._written.set()

    @property
    def body(self) -> bytes:
        """What has come of the answer's body."""
        return self._read()[2]

    def until(self, mark: bytes) -> bytes:
        """All of the body so far, once `mark` has come."""
        self._gateway.run(self._wait(lambda: mark in self.body))
        assert mark in self.body, f"the answer ended after {self.body[-300:]!r}"
        return self.body

    def rest(self) -> bytes:
        """The whole body. Raises as `http.client` does for an answer that is not whole."""
        return self.answer()[2]

    def answer(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body, whole."""
        self._gateway.run(self._wait(lambda: False))
        return self._read(whole=True)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self._gateway.run(self._leave())

    async def _leave(self) -> None:
        if not self.connection.lost:
            self.connection.connection_lost(None)
        await settle()

    async def _wait(self, found: Callable[[], bool]) -> None:
        """Until something is found, or nothing more comes."""
        async with asyncio.timeout(SECONDS):
            while not found() and self.connection.task is not None and not self.closed:
                self._written.clear()
                written = asyncio.ensure_future(self._written.wait())
                try:
                    await asyncio.wait([written, self.connection.task], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    written.cancel()
            await settle()

    def _read(self, whole: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
        if b"\r\n\r\n" not in self.written and not whole:
            return 0, [], b""
        response = http.client.HTTPResponse(_File(bytes(self.written)))  # type: ignore[arg-type]
        response.begin()
        try:
            body = response.read()
        except http.client.IncompleteRead as short:
            if whole:
                raise
            body = short.partial
        return response.status, response.getheaders(), body


class _File(io.BytesIO):
    """Bytes that `http.client` takes for a socket."""

    def makefile(self, mode: str) -> _File:
        return self


class InProcess:
    """A running gateway, asked for the same things as a `GatewayProcess`."""

    def __init__(self, table: str, folder: Path, upstream: Upstream) -> None:
        self._loop = asyncio.new_event_loop()
        self._said = io.StringIO()
        self._log = logging.StreamHandler(self._said)
        (folder / "routing.yaml").write_text(table)
        source = Source(folder / "routing.yaml")
        with mock.patch.object(app, "Lines", Records):
            self._gateway = app.Gateway(Settings.read(state=str(folder / "keys.db")), source.load(), source)
        self._gateway.forwarder._pool._dialer = Dialer(upstream)  # type: ignore[assignment]
        self.listener: Listener

    def open(self) -> None:
        """Begin to serve."""
        logging.getLogger("trunkline").addHandler(self._log)

        async def begin() -> None:
            await self._gateway.lifetime.open()
            self.listener = Listener(self._gateway.serve, SECONDS)

        self.run(begin())

    def close(self) -> None:
        """End, with all that was begun."""

        async def end() -> None:
            await self._gateway.lifetime.close()
            await settle()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:  # scripts that stall
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(end())
        self.run(self._loop.shutdown_default_executor())
        self._loop.close()
        logging.getLogger("trunkline").removeHandler(self._log)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the gateway go on until this is done."""
        return self._loop.run_until_complete(work)

    def client(self, call: bytes) -> Client:
        """One that has sent this."""

        async def begin() -> Client:
            return Client(self, call)

        return self.run(begin())

    def issue(self, **options: Any) -> Issued:
        """Create a key."""
        registrar = Registrar(self._gateway.store.records, {0: b""}, SystemClock(), "test")
        return Issued(*self.run(registrar.create("test", **options)))

    def stdout(self) -> str:
        return "".join(line.decode() + "\n" for line in self._gateway.lines)  # type: ignore[attr-defined]

    def stderr(self) -> str:
        return self._said.getvalue()

    def metrics(self) -> str:
        self.run(settle())
        return exposition(self._gateway.metrics).decode()


async def settle() -> None:
    """Let everything happen that can without waiting."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextmanager
def in_process(table: str, folder: Path, upstream: Upstream) -> Iterator[InProcess]:
    """A gateway serving `table` for as long as the block lasts."""
    gateway = InProcess(table, folder, upstream)
    try:
        gateway.open()
        yield gateway
    finally:
        gateway.close()

"""A model server that does what a test scripts, over real TCP: answer, stream, stall, cut, reset, lie, trickle."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


class Act(Enum):
    """What an upstream can do besides sending bytes."""

    STALL = "say nothing more until the peer leaves"
    CUT = "close the connection"
    RESET = "close the connection with a TCP reset"


class Gate:
    """A step of a script: wait until the test opens it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        await asyncio.to_thread(self._event.wait, 30)


class Slowly:
    """A step of a script: these bytes in pieces of `size`, each in a packet of its own."""

    def __init__(self, data: bytes, size: int = 1) -> None:
        self.pieces = [data[i : i + size] for i in range(0, len(data), size)]


Step = bytes | Act | Gate | Slowly
Script = Sequence[Step]


def head(status: int = 200, **headers: str | int) -> bytes:
    """A response head; underscores in header names stand for hyphens."""
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(body: bytes | Any, status: int = 200, content_type: str = "application/json", **headers: str | int) -> Script:
    """A whole answer; anything but bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [head(status, content_type=content_type, content_length=len(raw), **headers) + raw]


def chunk(data: bytes) -> bytes:
    """One piece in chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*steps: Step, end: bool = True, **headers: str | int) -> Script:
    """A stream of server-sent events in chunked coding: bytes become chunks, other steps stay what they are."""
    start = head(content_type="text/event-stream", transfer_encoding="chunked", **headers)
    said = [chunk(step) if isinstance(step, bytes) else step for step in steps]
    return [start, *said, *([END] if end else [])]


def event(content: str | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    """A chat event with some text, or with the reason for which the answer ended."""
    delta = {} if content is None else {"content": content}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    data = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **fields}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def usage_event(prompt: int = 5, completion: int = 2) -> bytes:
    """The event a server sends last when it was asked for the usage."""
    return event(choices=[], usage=usage(prompt, completion))


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def answer(content: str = "Hello", prompt: int = 5, completion: int = 2) -> dict[str, Any]:
    """A whole chat answer."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    counts = usage(prompt, completion)
    return {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": counts}


GOOD_STREAM = stream(event("Hel"), event("lo"), event(finish="stop"), usage_event(), DONE)


class Received:
    """A request as it arrived, and when its connection was closed by the peer."""

    def __init__(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.peer: object = None
        """The address the connection came from: the same for calls on one connection."""
        self.closed = threading.Event()
        self.closed_at: float | None = None

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


class Target:
    """One scripted model server. `script` answers every call, `scripts` the next ones; `healthy` answers probes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.restore()

    def restore(self) -> None:
        """Forget the calls and answer well again: whole and streamed calls each as they ask."""
        self.healthy = True
        self.lone = False
        """A connection is good for one request: the next one finds it closed, as if that had crossed its way."""
        self.script: Script | None = None
        self.scripts: list[Script] = []
        self.calls: list[Received] = []
        self.probes: list[Received] = []
        self.open_paths: dict[str, int] = {}
        """Paths that look at what comes without a credential, and the status with which they refuse what is no call."""

    def answers(self, received: Received) -> Script:
        if received.method == "GET":
            self.probes.append(received)
            return whole({}, 200 if self.healthy else 503)
        self.calls.append(received)
        if self.scripts:
            return self.scripts.pop(0)
        if self.script is not None:
            return self.script
        return GOOD_STREAM if received.json().get("stream") is True else whole(answer())

    def wait_for_calls(self, count: int = 1, seconds: float = 30) -> Received:
        """The last of at least `count` calls, once they have come."""
        deadline = time.monotonic() + seconds
        while len(self.calls) < count:
            assert time.monotonic() < deadline, f"{len(self.calls)} of {count} calls came"
            time.sleep(0.002)
        return self.calls[count - 1]


BACKLOG = 4096
"""A gateway that starts asks all its targets at once; a connection too many would wait a second for its next try."""


class Upstream:
    """A TCP server in a thread of its own; each target is a path prefix on it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._targets: dict[str, Target] = {}
        self.host = host
        self._loop = asyncio.new_event_loop()
        self._connections: set[ScriptedConnection] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream", daemon=True)
        self._thread.start()
        self.port = 0
        self.listening = True
        self.accepted = 0
        """Connections so far."""
        self.listen()

    def target(self, name: str) -> Target:
        """The target of this name, at `url`."""
        if name not in self._targets:
            self._targets[name] = Target(f"http://{self.host}:{self.port}/{name}")
        return self._targets[name]

    def listen(self) -> None:
        """Take connections (again), always on the same port."""

        async def start() -> asyncio.Server:
            return await self._loop.create_server(self._connection, self.host, self.port, backlog=BACKLOG)

        self._server = asyncio.run_coroutine_threadsafe(start(), self._loop).result(30)
        self.port = self._server.sockets[0].getsockname()[1]
        self.listening = True

    def _connection(self) -> ScriptedConnection:
        return ScriptedConnection(self)

    def vanish(self) -> None:
        """Close the port and every connection: from here on connecting is refused."""

        async def stop() -> None:
            self.listening = False
            for listener in self._server.sockets:
                self._loop.remove_reader(listener.fileno())
            for _ in range(3):  # a closed server leaves behind what it has just accepted
                await asyncio.sleep(0)
            self._server.close()
            for connection in list(self._connections):
                connection.transport.abort()
            await self._server.wait_closed()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(30)

    def stop(self) -> None:
        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.vanish()
        asyncio.run_coroutine_threadsafe(finish(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def route(self, received: Received, *, again: bool) -> Script:
        name, _, path = received.path.removeprefix("/").partition("/")
        received.path = "/" + path
        found = self._targets.get(name)
        if found is None:
            return whole({"error": "no such target"}, 599)
        if received.method == "POST" and received.body == b"{}" and received.header("authorization") is None:
            found.probes.append(received)
            return whole({"error": "without a credential"}, found.open_paths.get(received.path, 401))
        return [Act.CUT] if found.lone and again else found.answers(received)


class ScriptedConnection(asyncio.Protocol):
    """One connection: requests in, scripts out, one after the other."""

    def __init__(self, upstream: Upstream, pause: float = 0.0005) -> None:
        """`pause`: seconds between the pieces of what is sent slowly. The kernel would join what is written at once."""
        self._upstream, self._pause = upstream, pause
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._lost = asyncio.Event()
        self._current: Received | None = None
        self._served = False
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._upstream.listening:  # accepted in the very moment in which it vanished
            return transport.abort()
        self._upstream._connections.add(self)
        self._upstream.accepted += 1
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream._connections.discard(self)
        self._lost.set()
        self._arrived.set()
        if self._current is not None:
            self._current.closed_at = time.monotonic()
            self._current.closed.set()

    async def _serve(self) -> None:
        with suppress(ConnectionError):
            while True:
                received = await self._request()
                received.peer = self.transport.get_extra_info("peername")
                self._current = received
                for step in self._upstream.route(received, again=self._served):
                    await self._do(step)
                self._served = True
                self._current = None

    async def _do(self, step: Step) -> None:
        if self._lost.is_set():
            raise ConnectionResetError
        if isinstance(step, bytes):
            self.transport.write(step)
        elif isinstance(step, Slowly):
            for piece in step.pieces:
                self.transport.write(piece)
                await asyncio.sleep(self._pause)
        elif isinstance(step, Gate):
            await step.passed()
        elif step is Act.STALL:
            await self._lost.wait()
        else:
            if step is Act.RESET:
                reset(self.transport)
            self.transport.close()
            raise ConnectionResetError

    async def _request(self) -> Received:
        head = await self._until(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ")
        headers = [(name, value.strip()) for name, _, value in (item.partition(":") for item in rest if item)]
        lowered = {name.lower(): value for name, value in headers}
        if "chunked" in lowered.get("transfer-encoding", ""):
            body = await self._chunked()
        else:
            body = await self._exactly(int(lowered.get("content-length", "0")))
        return Received(method, path, headers, body)

    async def _chunked(self) -> bytes:
        pieces = []
        while size := int(await self._until(b"\r\n"), 16):
            pieces.append(await self._exactly(size))
            await self._until(b"\r\n")
        await self._until(b"\r\n")
        return b"".join(pieces)

    async def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            await self._more()
        return (await self._exactly(at + len(mark)))[: -len(mark)]

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _more(self) -> None:
        self._arrived.clear()
        if self._lost.is_set():
            raise ConnectionResetError
        await self._arrived.wait()


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset, or as one, where there is no socket."""
    opened: socket.socket | None = transport.get_extra_info("socket")
    if opened is None:
        transport.reset()  # type: ignore[attr-defined] # `harness.in_process.Pipe`
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@contextmanager
def scripted_upstream() -> Iterator[Upstream]:
    """A scripted upstream for as long as the block lasts."""
    upstream = Upstream()
    try:
        yield upstream
    finally:
        upstream.stop()

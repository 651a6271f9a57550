"""What a target has sent before its connection breaks is handed on first, and the break after it, however late."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from harness.upstream import chunk, event, head

from gateway.upstream.transport import BLOCK_BYTES, Transport

FEW = [event(f"word {n}") for n in range(40)]
MANY = [event(f"word {n} " + "x" * 1000) for n in range(5 * BLOCK_BYTES // 1000)]
"""More than is held for a reader: some of it is still in the kernel when the connection breaks."""

STREAM = head(content_type="text/event-stream", transfer_encoding="chunked")


class Breaking:
    """A server for one call. What it sends is in its caller's kernel when `send` or `end` returns."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener
        self._connection: socket.socket | None = None
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read = b""
        while not read.endswith(b"}"):
            read += self._connection.recv(65536)
        self._asked.set()

    async def wait_for_call(self) -> None:
        await asyncio.to_thread(self._asked.wait, 10)

    def send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    def end(self, *, reset: bool) -> None:
        assert self._connection is not None
        if reset:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def stop(self) -> None:
        self._thread.join(10)
        if self._connection is not None:
            self._connection.close()


@pytest.fixture
def server() -> Iterator[Breaking]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        breaking = Breaking(listener)
        yield breaking
        breaking.stop()


@asynccontextmanager
async def answering(server: Breaking, start: bytes) -> AsyncIterator[httpx.Response]:
    """An answer of which only the head has come."""
    transport = Transport()
    asking = asyncio.create_task(transport.handle_async_request(httpx.Request("POST", server.url, content=b"{}")))
    try:
        await server.wait_for_call()
        server.send(start)
        response = await asking
        yield response
        await response.aclose()
    finally:
        asking.cancel()
        await transport.aclose()


async def nobody_reads() -> None:
    """The loop takes in what lies in the kernel, and notices what follows, while nobody takes it from there."""
    for _ in range(50):
        await asyncio.sleep(0)


async def read(response: httpx.Response) -> tuple[bytes, httpx.TransportError | None]:
    """What is handed on, and how it ends."""
    got = b""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    try:
        async for block in stream:
            assert 0 < len(block) <= BLOCK_BYTES
            got += block
            await asyncio.sleep(0)
    except httpx.TransportError as error:
        return got, error
    return got, None


@pytest.mark.parametrize("pieces", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("start", "sent", "rest"),
    [
        pytest.param(STREAM, chunk, b"", id="between chunks"),
        pytest.param(STREAM, chunk, b"fff\r\nda", id="in a chunk"),
        pytest.param(STREAM, chunk, b"oops\r\n", id="in a length that is none"),
        pytest.param(head(content_length=10**6), bytes, b"da", id="short of its length"),
    ],
)
async def test_what_came_before_a_break_is_handed_on_before_the_break(
    server: Breaking, pieces: list[bytes], reset: bool, start: bytes, sent: type[bytes], rest: bytes
) -> None:
    async with answering(server, start) as response:
        server.send(b"".join(sent(piece) for piece in pieces) + rest)
        server.end(reset=reset)
        await nobody_reads()
        got, error = await read(response)
    assert got == b"".join(pieces) + (b"da" if rest.endswith(b"da") else b"")
    assert isinstance(error, httpx.ReadError)


@pytest.mark.parametrize("first", [b"", chunk(b"some")], ids=["alone", "behind a piece"])
async def test_broken_framing_is_told_at_once_though_the_connection_stays(server: Breaking, first: bytes) -> None:
    async with answering(server, STREAM) as response:
        reading = asyncio.create_task(read(response))
        await nobody_reads()
        server.send(first + b"oops\r\n")
        async with asyncio.timeout(10):
            got, error = await reading
    assert got == (b"some" if first else b"") and isinstance(error, httpx.ReadError)


async def test_a_break_is_told_each_time(server: Breaking) -> None:
    async with answering(server, STREAM) as response:
        server.send(chunk(b"some"))
        server.end(reset=True)
        await nobody_reads()
        assert (await read(response))[0] == b"some"
        got, error = await read(response)
    assert got == b"" and isinstance(error, httpx.ReadError)


async def test_a_whole_answer_is_whole_though_its_connection_broke(server: Breaking) -> None:
    body = b"x" * (BLOCK_BYTES + 1)
    async with answering(server, head(content_length=len(body))) as response:
        server.send(body)
        server.end(reset=True)
        await nobody_reads()
        assert await read(response) == (body, None)

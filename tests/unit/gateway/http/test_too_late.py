"""What comes too late, or is not read in time, ends its connection; what is only slow does not."""

from __future__ import annotations

import asyncio

import pytest
from harness.served import GET, POST, Wire, echo, kept, serving

from gateway.core.errors import ReaderTooSlow
from gateway.http import connection as module
from gateway.http import listener
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.1)


async def drips(wire: Wire, head: bytes) -> int:
    """Sends the head little by little until the connection ends; how many bytes that took."""
    ended = asyncio.ensure_future(wire.rest())
    for sent, byte in enumerate(head):
        wire.send(bytes([byte]))
        await asyncio.sleep(0.02)
        if ended.done():
            assert ended.exception() is not None or ended.result() == b""
            return sent
    raise AssertionError("it was read to its end")


async def test_a_head_must_come_in_time_however_little_comes_at_once() -> None:
    head = GET % (b"x" * 500)
    async with serving(echo, head_seconds=0.1) as served:
        assert await (await served.connect()).rest() == b"", "nothing of it"
        assert await drips(await served.connect(), head)
        second = await served.connect()
        second.send(GET % b"a")
        assert (await second.answer()).status == 200
        assert await drips(second, head)


async def test_half_a_head_behind_a_request_must_go_on_in_time() -> None:
    async with serving(echo, head_seconds=0.1) as served:
        wire = await served.connect()
        wire.send(GET % b"a" + b"GET /b")
        assert (await wire.answer()).body == b"GET /a "
        assert await wire.rest() == b""


async def test_a_connection_without_requests_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(GET % b"a")
        assert (await wire.answer()).status == 200
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.1)
        wire.send(GET % b"b")
        assert (await wire.answer()).status == 200
        assert await wire.rest() == b""


async def test_a_body_that_stops_is_not_waited_for() -> None:
    async def impatient(connection: Connection, request: Request, answer: Answer) -> None:
        with pytest.raises(TimeoutError):
            while await connection.more(0.1):
                pass
        answer.start(408, [(b"content-length", b"0")])
        answer.end()

    async with serving(impatient) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + b"content-length: 10\r\n\r\nhello")
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.rest() == b""


class Large:
    """Serves a large answer, and keeps what became of it."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size, self.seconds = size, seconds
        self.outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def __call__(self, connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(200, [(b"content-length", b"%d" % self.size)])
        try:
            for at in range(0, self.size, 2**16):
                answer.write(bytes(min(2**16, self.size - at)))
                await connection.drained(self.seconds)
            answer.end()
        except BaseException as error:
            self.outcome.set_result(error)
        else:
            self.outcome.set_result(None)


async def test_a_client_that_does_not_read_is_cut_off_with_a_reset() -> None:
    large = Large(50_000_000, 0.2)
    async with serving(large) as served:
        wire = await served.connect(receive_bytes=4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(GET % b"a")
        assert isinstance(await large.outcome, ReaderTooSlow)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await wire.rest()


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    """It takes many times as long as it may pause."""
    large = Large(3_000_000, 0.5)
    async with serving(large) as served:
        wire = await served.connect(receive_bytes=4096)
        wire.send(GET % b"a")
        size = 0
        while size < large.size:
            size += len(await wire.reader.read(50_000))
            await asyncio.sleep(0.02)
        assert await large.outcome is None


async def test_the_rest_of_an_answer_waits_for_its_reader_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSENT_SECONDS", 0.1)

    async def at_once(connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(200, [(b"content-length", b"%d" % 50_000_000), (b"connection", b"close")])
        answer.end(bytes(50_000_000))

    async with serving(at_once) as served:
        for raw in (GET % b"a", GET % b"a" + GET % b"never", POST % b"a" + b"content-length: 9\r\n\r\n"):
            wire = await served.connect()
            wire.send(raw)
            assert len((await wire.answer()).body) == 50_000_000
            assert await wire.rest() == b""
        monkeypatch.setattr(module, "UNSENT_BYTES_PER_SECOND", 1_000_000_000)
        wire = await served.connect(receive_bytes=4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(GET % b"a")
        connection = await served.connection()
        while not connection.lost:
            await asyncio.sleep(0.01)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await wire.rest()


async def test_a_client_that_sends_on_after_a_refusal_is_cut_off() -> None:
    async with serving(kept(asyncio.Event())) as served:
        wire = await served.connect()
        wire.send(b"NONSENSE\r\n\r\n")
        assert (await wire.answer()).status == 400
        sent = 0
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                wire.send(b"x" * 1000)
                await wire.writer.drain()
                await asyncio.sleep(0.01)
                sent += 1
        assert sent

"""A client that leaves is noticed at every phase of its request, once, and nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest
from harness.served import GET, POST, Served, Wire, echo, serving, until

from gateway.http import connection as module
from gateway.http import listener
from gateway.http.answer import Answer
from gateway.http.connection import AHEAD_BYTES, Connection
from gateway.http.parser import RequestParser
from gateway.http.request import Request

WAYS: dict[str, Callable[[Wire], None]] = {"FIN": Wire.close, "RST": Wire.reset}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)


@pytest.fixture(params=WAYS)
def leave(request: pytest.FixtureRequest) -> Callable[[Wire], None]:
    return WAYS[request.param]


class Watched:
    """Serves without end; counts how often it was told that the client left, and how often that cancelled it."""

    def __init__(self, answers: bool = False) -> None:
        self.begun = self.lost = self.cancelled = 0
        self.paths: list[str] = []
        self._answers = answers

    async def __call__(self, connection: Connection, request: Request, answer: Answer) -> None:
        self.begun += 1
        self.paths.append(request.path)
        task = connection.task
        assert task is not None

        def lost() -> None:
            self.lost += 1
            task.cancel()

        connection.on_lost = lost
        try:
            while await connection.more(30):
                pass
            if self._answers:
                answer.start(200, [])
            while self._answers:
                answer.write(bytes(2**16))
                await connection.drained(30)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def gone(served: Served) -> None:
    await until(lambda: not served.listener.connections)


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"GET / HT", GET[:-2] % b"a"], ids=["nothing", "a line", "half", "most"]
)
async def test_before_its_request_is_there(sent: bytes, leave: Callable[[Wire], None]) -> None:
    watched = Watched()
    async with serving(watched) as served:
        wire = await served.connect()
        wire.send(sent)
        await served.connection()
        leave(wire)
        await gone(served)
    assert watched.begun == 0


BODY = POST % b"a" + b"content-length: 10\r\n\r\nhello"


@pytest.mark.parametrize(
    "sent",
    [GET % b"a", BODY, BODY + b"hello", GET % b"a" + GET % b"b", GET % b"a" + BODY, GET % b"a" + b"x" * 10_000],
    ids=["served", "half a body", "a body", "another waits", "another's body waits", "nonsense waits"],
)
async def test_while_it_is_served(sent: bytes, leave: Callable[[Wire], None]) -> None:
    watched = Watched()
    async with serving(watched) as served:
        wire = await served.connect()
        wire.send(sent)
        await until(lambda: watched.begun)
        leave(wire)
        await gone(served)
    assert (watched.begun, watched.lost, watched.cancelled) == (1, 1, 1)
    assert watched.paths == ["/a"], "what waited behind it is not served"


async def test_while_it_does_not_read_a_large_answer(leave: Callable[[Wire], None]) -> None:
    watched = Watched(answers=True)
    async with serving(watched) as served:
        wire = await served.connect(receive_bytes=4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(GET % b"a")
        connection = await served.connection()
        await until(lambda: connection.is_full)
        leave(wire)
        await gone(served)
    assert (watched.begun, watched.lost, watched.cancelled) == (1, 1, 1)


async def test_between_two_requests(leave: Callable[[Wire], None]) -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(GET % b"a")
        assert (await wire.answer()).status == 200
        leave(wire)
        await gone(served)


async def test_while_it_is_refused(leave: Callable[[Wire], None]) -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(b"NONSENSE\r\n\r\n")
        assert (await wire.answer()).status == 400
        leave(wire)
        await gone(served)


async def test_who_serves_and_does_not_ask_is_not_held_up_by_a_client_that_left() -> None:
    """Whoever sets no `on_lost`, or goes on after it, finds that nothing is left to wait for."""
    told, done = list[str](), asyncio.Event()

    async def heedless(connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(200, [])
        while not connection.is_full:
            answer.write(bytes(2**16))
        await connection.drained(30)
        answer.write(b"to nobody")
        await connection.drained(30)
        try:
            await connection.more(30)
        except ConnectionResetError as error:
            told.append(str(error))
        answer.end()
        done.set()

    async with serving(heedless) as served:
        wire = await served.connect(receive_bytes=4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(POST % b"a" + b"content-length: 10\r\n\r\n")
        connection = await served.connection()
        await until(lambda: connection.is_full)
        wire.reset()
        await done.wait()
    assert told == ["the client has left"]


async def test_a_client_that_sent_very_much_ahead_is_found_to_have_left_when_it_is_served() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send((GET % b"a") * (4 * AHEAD_BYTES // len(GET)))
        assert (await wire.answer()).status == 200
        wire.reset()
        await gone(served)


async def test_a_handler_that_fails_ends_the_connection_with_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(200, [(b"content-length", b"5")])
        answer.write(b"hel")
        raise RuntimeError("boom")

    async with serving(fails) as served:
        wire = await served.connect()
        wire.send(GET % b"a")
        with pytest.raises(ConnectionResetError):
            await wire.rest()
        await gone(served)
    assert "a bug of ours" in caplog.text
    assert "boom" in caplog.text


async def test_nothing_of_a_connection_waits_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.01)
    async with serving(echo) as served:
        gc.collect()
        gc.disable()
        try:
            for raw in (GET % b"a", GET % b"a" + GET % b"b", BODY, BODY + b"hello", b"NONSENSE\r\n\r\n"):
                wire = await served.connect()
                wire.send(raw)
                await (wire.drip(b"") if raw is BODY else wire.answer())
                wire.close()
                await gone(served)
                await until(lambda: not held())
        finally:
            gc.enable()


def held() -> list[object]:
    """What is in memory of connections and their requests."""
    return [each for each in gc.get_objects() if isinstance(each, (Connection, Request, Answer, RequestParser))]

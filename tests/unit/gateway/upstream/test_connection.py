"""Answers over real sockets: pieces, breaks, back-pressure, deadlines, and what is left when a caller gives up."""

from __future__ import annotations

import asyncio
import socket

import pytest
from harness.peer import Listener, Peer
from harness.upstream import chunk, head

from gateway.core.errors import BadReply, Disconnected
from gateway.upstream.connection import HELD_BYTES, Connection, Response
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool

STREAM = head(content_type="text/event-stream", transfer_encoding="chunked")
OK = head(content_length=2) + b"ok"
END = b"0\r\n\r\n"


@pytest.fixture
def origin(pool: Pool, listener: Listener) -> Origin:
    return Origin("t", f"http://127.0.0.1:{listener.port}")


async def begun(
    pool: Pool, origin: Origin, listener: Listener, start: bytes = STREAM, body: bytes | None = b"{}"
) -> tuple[Response, Peer]:
    """An answer of which `start` has come, and its far end."""
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], body, 5.0))
    peer = await listener.peer()
    await peer.request()
    peer.send(start)
    return await asking, peer


async def read(response: Response) -> tuple[bytes, Exception | None]:
    """What is handed on, and how it ends."""
    got = b""
    try:
        async with asyncio.timeout(30):
            while piece := await response.read():
                got += piece
    except Disconnected as failure:
        return got, failure
    return got, None


async def nobody_reads() -> None:
    """The loop takes in what lies in the kernel, and notices what follows."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_a_request_and_its_answer(pool: Pool, origin: Origin, listener: Listener) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"c-1")]
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", headers, b'{"a":1}', 5.0))
    peer = await listener.peer()
    lines, body = await peer.request()
    assert lines == [
        "POST /v1/x HTTP/1.1",
        f"host: 127.0.0.1:{listener.port}",
        "content-type: application/json",
        "x-request-id: c-1",
        "content-length: 7",
    ]
    assert body == b'{"a":1}'
    peer.send(head(201, content_type="text/plain", content_length=5) + b"hello")
    response = await asking
    assert (response.status, response.headers.get(b"content-type")) == (201, b"text/plain")
    assert not response.ended and await response.read() == b"hello"
    assert response.ended and await response.read() == b""
    response.release()


async def test_a_question_without_a_body_announces_none(pool: Pool, origin: Origin, listener: Listener) -> None:
    asking = asyncio.create_task(pool.request(origin, "GET", "/health", [], None, 5.0))
    peer = await listener.peer()
    lines, body = await peer.request()
    assert lines == ["GET /health HTTP/1.1", f"host: 127.0.0.1:{listener.port}"] and body == b""
    peer.send(OK)
    (await asking).release()


async def test_a_large_body_arrives_whole(pool: Pool, origin: Origin, listener: Listener) -> None:
    body = bytes(range(256)) * 20_000
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], body, 5.0))
    peer = await listener.peer()
    assert (await peer.request())[1] == body
    peer.send(OK)
    (await asking).release()


async def test_nagles_algorithm_is_off(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, _ = await begun(pool, origin, listener)
    assert response.connection is not None and response.connection._transport is not None
    opened = response.connection._transport.get_extra_info("socket")
    assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    response.release()


async def test_a_small_answer_that_came_with_its_head_is_read_without_waiting(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    response, _ = await begun(pool, origin, listener, OK)
    for expected in (b"ok", b""):
        step = response.read()
        with pytest.raises(StopIteration) as done:
            step.send(None)
        assert done.value.value == expected
    response.release()


async def test_what_came_at_once_is_one_piece(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, peer = await begun(pool, origin, listener)
    peer.send(b"".join(chunk(b"%d;" % n) for n in range(20)))
    assert await response.read() == b"".join(b"%d;" % n for n in range(20))
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0)
    peer.send(chunk(b"next"))
    assert await reading == b"next"
    peer.send(END)
    assert await response.read() == b""
    response.release()


@pytest.mark.parametrize("size", [1000, HELD_BYTES], ids=["few", "many"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("start", "rest", "more"),
    [
        pytest.param(STREAM, b"", b"", id="between chunks"),
        pytest.param(STREAM, b"fff\r\nda", b"da", id="in a chunk"),
        pytest.param(STREAM, b"oops\r\n", b"", id="in a length that is none"),
        pytest.param(head(content_length=10**8), b"da", b"da", id="short of its length"),
    ],
)
async def test_what_came_before_a_break_is_handed_on_before_the_break(
    pool: Pool, origin: Origin, listener: Listener, size: int, reset: bool, start: bytes, rest: bytes, more: bytes
) -> None:
    response, peer = await begun(pool, origin, listener, start)
    first, second = b"x" * size, b"y" * 10_000  # of many, nothing is read behind the first: the rest is in the kernel
    body = first + second
    peer.send(chunk(first) if start == STREAM else first)
    await peer.arrived()
    peer.send((chunk(second) if start == STREAM else second) + rest)
    await peer.arrived()
    peer.reset() if reset else peer.close()
    await nobody_reads()
    got, failure = await read(response)
    assert got == body + more and isinstance(failure, Disconnected)
    assert await read(response) == (b"", failure), "it is told each time"
    response.release()
    assert not origin.idle


async def test_a_reset_is_told_in_the_systems_words(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, peer = await begun(pool, origin, listener)
    peer.reset()
    _, failure = await read(response)
    assert "ConnectionResetError: Connection reset by peer" in str(failure)
    response.release()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_an_answer_without_a_length_ends_with_a_close_and_not_with_a_reset(
    pool: Pool, origin: Origin, listener: Listener, reset: bool
) -> None:
    response, peer = await begun(pool, origin, listener, head(content_type="text/event-stream"))
    peer.send(b"text")
    await nobody_reads()
    peer.reset() if reset else peer.close()
    got, failure = await read(response)
    assert got == b"text" and isinstance(failure, Disconnected) is reset
    response.release()
    assert not origin.idle


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_whole_answer_is_whole_though_its_connection_broke(
    pool: Pool, origin: Origin, listener: Listener, reset: bool
) -> None:
    response, peer = await begun(pool, origin, listener, OK)
    peer.reset() if reset else peer.close()
    await nobody_reads()
    assert await read(response) == (b"ok", None)
    response.release()
    assert not origin.idle


@pytest.mark.parametrize(
    ("sent", "kind", "why"),
    [
        (b"nonsense\r\n\r\n", BadReply, "HTTP/1.1"),
        (b"", Disconnected, "unanswered"),
        (b"HTTP/1.1 200", Disconnected, "in the head"),
    ],
    ids=["no HTTP", "nothing", "half a head"],
)
async def test_no_head_comes(
    pool: Pool, origin: Origin, listener: Listener, sent: bytes, kind: type[Exception], why: str
) -> None:
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    peer = await listener.peer()
    await peer.request()
    peer.send(sent)
    if kind is Disconnected:
        peer.close()
    with pytest.raises(kind, match=why):
        await asking
    await peer.ended.wait()
    assert (origin.open, origin.idle) == (0, [])


async def test_broken_framing_is_told_at_once_though_the_connection_stays(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    response, peer = await begun(pool, origin, listener)
    reading = asyncio.create_task(read(response))
    peer.send(chunk(b"some") + b"oops\r\n")
    got, failure = await reading
    assert got == b"some" and "chunks are broken" in str(failure)
    await peer.ended.wait()
    response.release()


async def test_a_reader_that_is_slow_stops_the_target(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, peer = await begun(pool, origin, listener)
    size = 64 * 1024 * 1024
    peer.send(chunk(b"x" * size) + END)
    await nobody_reads()
    held = response.held
    assert HELD_BYTES <= held <= HELD_BYTES + 512 * 1024
    await nobody_reads()
    assert response.held == held and peer.transport.get_write_buffer_size() > 0
    got = 0
    while piece := await response.read():
        got += len(piece)
        assert len(piece) <= HELD_BYTES + 512 * 1024
    assert got == size
    response.release()
    assert len(origin.idle) == 1


async def test_while_a_reader_has_a_piece_no_other_is_read_for_it(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    response, peer = await begun(pool, origin, listener)
    size = 8 * 1024 * 1024
    peer.send(chunk(b"x" * size) + END)
    await nobody_reads()
    got = len(await response.read())
    await nobody_reads()
    assert response.held == 0
    while piece := await response.read():
        got += len(piece)
    assert got == size
    response.release()


async def test_the_end_of_a_message_is_read_though_its_reader_was_slow(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    response, peer = await begun(pool, origin, listener)
    peer.send(chunk(b"x" * HELD_BYTES))
    while response.held < HELD_BYTES:
        await nobody_reads()
    await response.read()
    peer.send(END)
    await nobody_reads()
    response.release(60)
    async with asyncio.timeout(30):
        while not origin.idle:
            await nobody_reads()


async def test_a_deadline_passes_while_nothing_comes(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, peer = await begun(pool, origin, listener)
    loop = asyncio.get_running_loop()
    response.deadline(loop.time() + 0.05)
    began = loop.time()
    with pytest.raises(TimeoutError):
        await response.read()
    assert loop.time() - began >= 0.049
    response.release()
    await peer.ended.wait()


async def test_a_deadline_passes_before_the_head(pool: Pool, origin: Origin, listener: Listener) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        await pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0, deadline=loop.time() + 0.05)
    await (await listener.peer()).ended.wait()
    assert (origin.open, origin.idle) == (0, [])


async def test_a_deadline_is_moved_with_every_piece_and_its_timer_is_not(
    pool: Pool, origin: Origin, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    response, peer = await begun(pool, origin, listener)
    loop, timers = asyncio.get_running_loop(), 0
    watch = Connection.watch

    def counting(self: Connection, moment: float) -> None:
        nonlocal timers
        before = self._timer
        watch(self, moment)
        timers += self._timer is not before

    monkeypatch.setattr(Connection, "watch", counting)
    for _ in range(50):
        response.deadline(loop.time() + 20)
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        peer.send(chunk(b"x"))
        assert await reading
    assert timers == 1
    response.deadline(loop.time() + 0.01)  # nearer than before: at once
    with pytest.raises(TimeoutError):
        await response.read()
    response.release()


async def test_a_deadline_that_is_moved_away_does_not_pass(pool: Pool, origin: Origin, listener: Listener) -> None:
    response, peer = await begun(pool, origin, listener)
    loop = asyncio.get_running_loop()
    response.deadline(loop.time() + 0.02)
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0)
    response.deadline(None)
    await asyncio.sleep(0.06)
    assert not reading.done()
    response.deadline(loop.time() + 0.02)  # while it waits
    with pytest.raises(TimeoutError):
        await reading
    peer.send(chunk(b"late"))
    response.deadline(None)
    assert await response.read() == b"late"
    response.release()


async def test_what_has_come_is_read_though_the_deadline_has_passed(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    response, peer = await begun(pool, origin, listener)
    peer.send(chunk(b"some"))
    await nobody_reads()
    response.deadline(0.0)
    assert await response.read() == b"some"
    response.release()


@pytest.mark.parametrize("when", ["connecting", "before the head", "in the body"])
async def test_whoever_gives_up_leaves_nothing_behind(
    pool: Pool, origin: Origin, listener: Listener, when: str
) -> None:
    response = None
    if when == "in the body":
        response, peer = await begun(pool, origin, listener)
        task: asyncio.Task[object] = asyncio.create_task(response.read())
        await asyncio.sleep(0)
    else:
        task = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
        await asyncio.sleep(0)
        if when == "before the head":
            peer = await listener.peer()
            await peer.request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if response is not None:
        response.release()
        response.release()
        with pytest.raises(Disconnected, match="given up"):
            await response.read()
    if when != "connecting":
        async with asyncio.timeout(30):
            await peer.ended.wait()
    await nobody_reads()
    assert (origin.open, origin.idle) == (0, [])


async def test_cancelled_at_every_turn_of_the_loop_it_leaves_nothing_behind(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    async def answer() -> None:
        while True:
            peer = await listener.peer()
            tasks.append(asyncio.create_task(serve(peer)))

    async def serve(peer: Peer) -> None:
        try:
            while True:
                await peer.request()
                peer.send(STREAM + chunk(b"a"))
                await asyncio.sleep(0)
                peer.send(chunk(b"b") + END)
        except ConnectionResetError:
            pass

    async def call() -> None:
        response = await pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0)
        try:
            while await response.read():
                pass
        finally:
            response.release()

    tasks = [asyncio.create_task(answer())]
    for turns in range(60):
        calls = [asyncio.create_task(call()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await call()
    await nobody_reads()
    assert origin.open == len(origin.idle) <= 3 * 60
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("sent", [b"", END, b"0\r\n", b"oops\r\n", chunk(b"more")], ids=repr)
@pytest.mark.parametrize("reset", [False, True, None], ids=["closed", "reset", "left open"])
async def test_the_end_of_a_message_that_nobody_reads_any_more(
    pool: Pool, origin: Origin, listener: Listener, sent: bytes, reset: bool | None
) -> None:
    """Its reader has its terminator; whether the connection serves again depends on what follows."""
    trouble: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
    response, peer = await begun(pool, origin, listener)
    peer.send(chunk(b"data: [DONE]"))
    assert await response.read() == b"data: [DONE]"
    response.release(0.05)
    peer.send(sent)
    await peer.arrived()
    if reset is not None:
        peer.reset() if reset else peer.close()
    kept = sent == END and reset is None
    async with asyncio.timeout(30):
        while response.connection is not None or (not kept and origin.open):
            await asyncio.sleep(0.001)
    await nobody_reads()
    assert not trouble
    assert (origin.open, len(origin.idle)) == ((1, 1) if kept else (0, 0))

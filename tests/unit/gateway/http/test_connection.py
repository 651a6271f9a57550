"""Requests of one connection over a real socket: one after the other, however they come, and in their time."""

from __future__ import annotations

import asyncio

import pytest
from harness.served import GET, POST, Wire, echo, kept, serving, until

from gateway.core.errors import BadFraming
from gateway.http import connection as module
from gateway.http import listener
from gateway.http.answer import Answer
from gateway.http.connection import AHEAD_BYTES, PIECE_BYTES, UNREAD_BYTES, Connection
from gateway.http.request import HEAD_BYTES, Request

CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
ONE_READ = 256 * 1024
"""The most that a loop hands over at once."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.2)


async def refused(wire: Wire, status: int = 400) -> None:
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert await wire.rest() == b""


async def test_requests_follow_one_another() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        for number in range(3):
            wire.send(POST % b"%d" % number + b"content-length: 2\r\n\r\nhi")
            answer = await wire.answer()
            assert answer[::2] == (200, b"POST /%d hi" % number)
            assert "connection" not in answer.headers
            assert "date" in answer.headers


async def test_requests_of_one_packet_are_answered_in_order_wherever_it_is_cut() -> None:
    raw = (
        GET % b"a"
        + CHUNKED % b"b"
        + b"2\r\nhi\r\n0\r\n\r\n"
        + POST % b"c"
        + b"content-length: 2\r\n\r\nho"
        + GET % b"d"
    )
    async with serving(echo) as served:
        wire = await served.connect()
        for at in range(len(raw)):
            wire.send(raw[:at])
            await asyncio.sleep(0)
            wire.send(raw[at:])
            bodies = [(await wire.answer()).body for _ in range(4)]
            assert bodies == [b"GET /a ", b"POST /b hi", b"POST /c ho", b"GET /d "]
        await wire.drip(raw)
        assert [(await wire.answer()).body for _ in range(4)] == bodies


async def test_many_small_requests_of_one_packet_are_not_all_held_as_requests() -> None:
    raw, number, may = b"GET / HTTP/1.1\r\n\r\n", 20_000, asyncio.Event()
    async with serving(kept(may)) as served:
        wire = await served.connect()
        wire.send(raw * number)
        connection = await served.connection()
        await until(lambda: len(connection._ahead) > AHEAD_BYTES)
        assert len(connection._parser.requests) <= PIECE_BYTES // len(raw)
        assert len(connection._ahead) <= AHEAD_BYTES + ONE_READ
        may.set()
        for _ in range(number):
            assert (await wire.answer()).body == b"GET / "


async def test_a_body_behind_another_request_in_one_packet_is_read_on() -> None:
    """The rest of the packet is kept while the first is served, and belongs to the second one's body."""
    body = b"x" * 3 * PIECE_BYTES
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(GET % b"a" + POST % b"b" + b"content-length: %d\r\n\r\n" % len(body) + body + GET % b"c")
        assert [(await wire.answer()).body for _ in range(3)] == [b"GET /a ", b"POST /b " + body, b"GET /c "]


async def test_old_clients_keep_their_connection_only_if_they_ask_to() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert (await wire.answer()).headers["connection"] == "keep-alive"
        wire.send(b"GET /b HTTP/1.0\r\n\r\n")
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.rest() == b""


async def test_a_client_that_will_not_go_on_is_let_go() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n" + GET % b"never")
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.rest() == b""


async def test_a_body_is_asked_for_once_if_the_client_waits_for_that() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        for body in (b"5\r\nhello\r\n", b"2\r\nhi\r\n"):
            wire.send(POST % b"a" + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n")
            assert (await wire.answer()).status == 100
            wire.send(body)
            await asyncio.sleep(0)
            wire.send(b"0\r\n\r\n")
            assert (await wire.answer()).status == 200


async def test_a_client_that_waits_is_not_asked_for_a_body_that_nobody_wants() -> None:
    async def unwanted(connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(413, [(b"content-length", b"0")])
        with pytest.raises(TimeoutError):
            await connection.more(0)
        answer.end()

    async with serving(unwanted) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        await refused(wire, 413)


@pytest.mark.parametrize("size", [1, 2, 5, 2**14])
async def test_chunks_of_any_size_are_one_body(size: int) -> None:
    body = bytes(range(256)) * 8
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    raw = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(CHUNKED % b"a" + raw)
        assert (await wire.answer()).body == b"POST /a " + body


async def test_a_body_that_is_mostly_framing_is_refused_even_in_one_packet() -> None:
    async with serving(judging) as served:
        wire = await served.connect()
        wire.send(CHUNKED % b"a" + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        await refused(wire)


async def judging(connection: Connection, request: Request, answer: Answer) -> None:
    """Answers 400 to a body that cannot be read."""
    status = 200
    try:
        while await connection.more(5):
            pass
    except BadFraming:
        status = 400
    answer.start(status, [(b"content-length", b"0")])
    answer.end()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\0" * 100, 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 300 + b"\r\n", 431),
    ],
    ids=["garbage", "another version", "CONNECT", "a long head", "many lines"],
)
async def test_what_cannot_be_read_is_refused_behind_what_could(raw: bytes, status: int) -> None:
    async with serving(echo) as served:
        for drips in (False, len(raw) < 5000):
            wire = await served.connect()
            wire.send(GET % b"a")
            await (wire.drip(raw) if drips else wire.drip(b""))
            wire.send(b"" if drips else raw)
            assert (await wire.answer()).body == b"GET /a "
            await refused(wire, status)


async def test_a_refusal_can_be_read_by_a_client_that_goes_on_sending() -> None:
    async with serving(echo) as served:
        wire = await served.connect()
        wire.send(b"NONSENSE / HTTP/1.1\r\n\r\n" + b"x" * 10_000_000)
        await refused(wire)


async def test_a_body_that_nobody_reads_is_not_held() -> None:
    may = asyncio.Event()
    body = b"x" * 8_000_000
    async with serving(kept(may)) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + b"content-length: %d\r\n\r\n" % len(body) + body)
        connection = await served.connection()
        await until(lambda: connection._paused)
        assert connection.request is not None
        assert UNREAD_BYTES < connection.request.unread <= UNREAD_BYTES + ONE_READ
        may.set()
        assert (await wire.answer()).body == b"POST /a " + body
        wire.send(GET % b"b")
        assert (await wire.answer()).body == b"GET /b "

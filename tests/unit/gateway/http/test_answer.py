"""How an answer is framed, and when its connection can be used again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from harness.client_connection import exchange
from harness.served import GET, POST, serving

from gateway.http.answer import JOINED_BYTES, Answer
from gateway.http.connection import Connection
from gateway.http.listener import Handle
from gateway.http.request import Request

LENGTH = (b"content-length", b"5")
HEAD, OLD = b"HEAD /a HTTP/1.1\r\n\r\n", b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"


def says(status: int, headers: list[tuple[bytes, bytes]], *pieces: bytes) -> Handle:
    async def serve(connection: Connection, request: Request, answer: Answer) -> None:
        answer.start(status, headers)
        for piece in pieces[:-1]:
            answer.write(piece)
        answer.end(*pieces[-1:])

    return serve


@pytest.mark.parametrize("pieces", [(), (b"hello",), (b"hel", b"lo"), (b"hel", b"", b"lo", b"")])
@pytest.mark.parametrize("headers", [[LENGTH], []], ids=["a length", "chunks"])
async def test_a_body_of_any_number_of_pieces(pieces: tuple[bytes, ...], headers: list[tuple[bytes, bytes]]) -> None:
    if not pieces:
        headers = [(name, b"0") for name, _ in headers]
    async with serving(says(200, headers, *pieces)) as served:
        wire = await served.connect()
        for _ in range(2):
            wire.send(GET % b"a")
            answer = await wire.answer()
            assert answer.body == b"".join(pieces)
            assert ("content-length" in answer.headers) is not ("transfer-encoding" in answer.headers)


@pytest.mark.parametrize("raw", [GET % b"a", OLD, HEAD], ids=["chunks", "an old client", "HEAD"])
async def test_pieces_of_every_size_arrive_in_their_order(raw: bytes) -> None:
    pieces = [bytes([65 + size % 26]) * size for size in (JOINED_BYTES + 1, 1, JOINED_BYTES, 300_000, 40_000, 2)]
    async with serving(says(200, [], *pieces)) as served:
        wire = await served.connect()
        wire.send(raw)
        answer = await wire.answer(bodyless=raw is HEAD)
        assert answer.body == (b"" if raw is HEAD else b"".join(pieces))


async def test_a_large_piece_is_not_in_memory_twice() -> None:
    request = Request()
    request.begin(b"GET", "1.1", True)
    connection, answer = exchange(request)
    written = list[bytes]()
    connection.transport.writelines = written.extend  # type: ignore[method-assign]
    answer.start(200, [])
    piece = b"x" * (JOINED_BYTES + 1)
    answer.write(piece)
    assert written[1] is piece
    assert written[0].endswith(b"\r\n\r\n8001\r\n")
    assert written[2] == b"\r\n"


@pytest.mark.parametrize(
    ("raw", "status", "headers"),
    [(HEAD, 200, [LENGTH]), (HEAD, 200, []), (GET % b"a", 204, []), (GET % b"a", 304, [LENGTH])],
    ids=["HEAD, a length", "HEAD", "204", "304"],
)
async def test_answers_without_a_body(raw: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    async with serving(says(status, headers, b"hel", b"lo")) as served:
        wire = await served.connect()
        for _ in range(2):
            wire.send(raw)
            answer = await wire.answer(bodyless=True)
            assert answer.status == status
            assert "transfer-encoding" not in answer.headers


async def test_for_an_old_client_a_body_without_a_length_ends_with_the_connection() -> None:
    async with serving(says(200, [], b"hel", b"lo")) as served:
        wire = await served.connect()
        wire.send(OLD)
        answer = await wire.answer()
        assert (answer.headers["connection"], answer.body) == ("close", b"hello")
        assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("raw", "keeps"),
    [
        (GET % b"a", True),
        (OLD, True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", False),
        (POST % b"a" + b"content-length: 5\r\n\r\nhel", False),
    ],
    ids=["1.1", "1.0 that asks", "1.0", "1.1 that asks", "not whole"],
)
async def test_the_head_says_whether_the_connection_goes_on(raw: bytes, keeps: bool) -> None:
    async with serving(says(200, [LENGTH], b"hello")) as served:
        wire = await served.connect()
        wire.send(raw)
        assert ((await wire.answer()).headers.get("connection") != "close") is keeps
        if not keeps:
            assert await wire.rest() == b""


async def test_whoever_answers_may_end_the_connection() -> None:
    async def drains(connection: Connection, request: Request, answer: Answer) -> None:
        answer.closes = True
        await says(200, [LENGTH], b"hello")(connection, request, answer)

    for handle in (drains, says(200, [LENGTH, (b"connection", b"Close")], b"hello")):
        async with serving(handle) as served:
            wire = await served.connect()
            wire.send(GET % b"a")
            assert (await wire.answer()).headers["connection"] == "close"
            assert await wire.rest() == b""


@pytest.mark.parametrize("pieces", [(b"hell",), (b"hel", b"l"), (), (b"hello", b"o")])
async def test_an_answer_of_another_length_than_announced_ends_in_a_reset(pieces: tuple[bytes, ...]) -> None:
    async with serving(says(200, [LENGTH], *pieces)) as served:
        wire = await served.connect()
        wire.send(GET % b"a" + GET % b"b")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await wire.answer()
            await wire.rest()


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb", b"a\r\n\r\n<html>"])
@pytest.mark.parametrize("place", [lambda value: (b"x-a", value), lambda value: (value, b"x")], ids=["value", "name"])
async def test_a_header_that_would_break_the_head_apart_is_refused(
    value: bytes, place: Callable[[bytes], tuple[bytes, bytes]]
) -> None:
    """What is said instead is framed as if nothing had been tried before."""

    async def tries(connection: Connection, request: Request, answer: Answer) -> None:
        for status, headers in ((200, [place(value)]), (204, [LENGTH, place(value)])):
            with pytest.raises(ValueError, match="line end"):
                answer.start(status, headers)
        assert not answer.started
        answer.start(500, [LENGTH])
        answer.end(b"sorry")

    async with serving(tries) as served:
        wire = await served.connect()
        for _ in range(2):
            wire.send(GET % b"a")
            answer = await wire.answer()
            assert (answer.status, answer.body) == (500, b"sorry")
            assert "transfer-encoding" not in answer.headers

"""Questions in httpx's words go out on the calls' connections, and fail in httpx's words."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from harness.peer import Listener, listening
from harness.redis_server import free_port
from harness.upstream import chunk, head

from gateway.core.errors import UpstreamError
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool
from gateway.upstream.transport import IN_HTTPX_WORDS, Transport, in_httpx_words

OK = head(content_type="text/plain", content_length=2) + b"ok"


def question(origin: Origin, path: str = "/health", method: str = "GET", **more: object) -> httpx.Request:
    request = httpx.Request(method, origin.url + path, headers={"x-a": "b"}, **more)  # type: ignore[arg-type]
    request.extensions = {"origin": origin, "timeout": {"connect": 5.0}}
    return request


async def asked(pool: Pool, origin: Origin, listener: Listener, answer: bytes, request: httpx.Request) -> list[str]:
    asking = asyncio.create_task(Transport(pool).handle_async_request(request))
    peer = await listener.peer()
    lines, body = await peer.request()
    peer.send(answer)
    response = await asking
    assert (response.status_code, response.headers["content-type"]) == (200, "text/plain")
    assert await response.aread() == b"ok"
    await response.aclose()
    return [*lines, body.decode()]


@pytest.mark.parametrize("path", ["", "/some/prefix"])
async def test_a_question_and_its_answer(pool: Pool, listener: Listener, path: str) -> None:
    origin = Origin("t", f"http://127.0.0.1:{listener.port}{path}")
    lines = await asked(pool, origin, listener, OK, question(origin, "/v1/models?all=1"))
    assert lines == [
        f"GET {path}/v1/models?all=1 HTTP/1.1",
        f"host: 127.0.0.1:{listener.port}",
        "x-a: b",
        "",
    ]
    assert len(origin.idle) == 1, "a call may go out on its connection"


async def test_a_question_with_a_body_and_one_that_has_none(pool: Pool, listener: Listener) -> None:
    origin = Origin("t", f"http://127.0.0.1:{listener.port}")
    lines = await asked(pool, origin, listener, OK, question(origin, "/wake", "POST"))
    assert lines[-2:] == ["content-length: 0", ""]
    origin.idle.pop().abort()
    lines = await asked(pool, origin, listener, OK, question(origin, "/wake", "POST", content=b"abc"))
    assert lines[-2:] == ["content-length: 3", "abc"]


async def test_a_question_over_a_unix_socket(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    async with listening(unix=str(path)) as listener:
        origin = Origin("t", f"unix://{path}")
        assert (await asked(pool, origin, listener, OK, question(origin)))[:2] == [
            "GET /health HTTP/1.1",
            "host: localhost",
        ]


async def test_failures_are_httpxs(pool: Pool, listener: Listener) -> None:
    transport = Transport(pool)
    with pytest.raises(httpx.ConnectError, match="ConnectionRefusedError"):
        await transport.handle_async_request(question(Origin("t", f"http://127.0.0.1:{free_port()}")))
    origin = Origin("t", f"http://127.0.0.1:{listener.port}")
    for sent, kind, tries in ((b"nonsense\r\n\r\n", httpx.RemoteProtocolError, 1), (b"", httpx.ReadError, 2)):
        asking = asyncio.create_task(transport.handle_async_request(question(origin)))
        for _ in range(tries):
            peer = await listener.peer()
            await peer.request()
            peer.send(sent)
            peer.close()
        with pytest.raises(kind):
            await asking
    asking = asyncio.create_task(transport.handle_async_request(question(origin)))
    peer = await listener.peer()
    await peer.request()
    peer.send(head(transfer_encoding="chunked") + chunk(b"some"))
    response = await asking
    peer.close()
    with pytest.raises(httpx.ReadError, match="before the last chunk"):
        await response.aread()
    await response.aclose()
    assert origin.idle == []


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_question_that_crosses_the_end_of_an_idle_connection_is_asked_again_if_it_changes_nothing(
    pool: Pool, listener: Listener, method: str
) -> None:
    origin = Origin("t", f"http://127.0.0.1:{listener.port}")
    await asked(pool, origin, listener, OK, question(origin))
    asking = asyncio.create_task(Transport(pool).handle_async_request(question(origin, method=method)))
    (first,) = listener.peers
    await first.request()
    first.close()
    if method == "GET":
        second = await listener.peer()
        await second.request()
        second.send(OK)
        assert (await asking).status_code == 200
    else:
        with pytest.raises(httpx.ReadError):
            await asking
        assert len(listener.peers) == 1


@pytest.mark.parametrize("kind", IN_HTTPX_WORDS, ids=lambda kind: kind.__name__)
def test_what_the_operating_system_said_is_kept(kind: type[UpstreamError]) -> None:
    assert str(in_httpx_words(kind("refused"))) == "refused"

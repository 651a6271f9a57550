"""An ASGI app behind a connection of ours."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from harness.served import GET, POST, Served, serving, until

from gateway.core.errors import BadFraming, BodyTimeout
from gateway.http import asgi, listener


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)


class App:
    """Reads all of the body, and answers; keeps what it was given."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            self.body += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Name", b"v")]})
        await send({"type": "http.response.body", "body": b"hel", "more_body": True})
        await send({"type": "http.response.body", "body": b"lo"})


async def ended(served: Served) -> None:
    await until(lambda: not served.listener.connections)


async def test_what_the_app_is_told_and_says() -> None:
    app = App()
    async with serving(partial(asgi.serve, app)) as served:
        wire = await served.connect()
        wire.send(b"POST /a%20b?c=%20d HTTP/1.1\r\nX-One: 1\r\ncontent-length: 5\r\n\r\nhello")
        answer = await wire.answer()
        assert (answer.status, answer.body, answer.headers["x-name"]) == (200, b"hello", "v")
        wire.send(b"GET http://x/other HTTP/1.1\r\n\r\n")
        assert (await wire.answer()).status == 200
        client = wire.socket.getsockname()
    scope, other = app.scopes
    assert app.body == b"hello"
    assert [scope[name] for name in ("method", "path", "raw_path", "query_string", "http_version", "scheme")] == [
        *("POST", "/a b", b"/a%20b", b"c=%20d", "1.1", "http")
    ]
    assert scope["headers"] == [(b"x-one", b"1"), (b"content-length", b"5")]
    assert (scope["client"], scope["server"]) == (client, ("127.0.0.1", served.port))
    assert other["path"] == "/other"


async def test_a_large_body_comes_in_pieces_and_whole() -> None:
    app = App()
    body = b"x" * 2_000_000
    async with serving(partial(asgi.serve, app)) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert (await wire.answer()).status == 200
    assert app.body == body


@pytest.mark.parametrize("sent", [b"", b"content-length: 5\r\n"], ids=["all was read", "a body is waited for"])
async def test_the_app_is_told_that_the_client_has_left(sent: bytes) -> None:
    told: list[str] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while not told or told[-1] != "http.disconnect":
            told.append((await receive())["type"])
        told.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"to nobody"})

    async with serving(partial(asgi.serve, waits)) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + sent + b"\r\n")
        await until(lambda: any(each.task for each in served.listener.connections))
        wire.close()
        await ended(served)
        await until(lambda: told[-2:] == ["http.disconnect"] * 2)


async def test_an_app_that_only_sends_is_not_held_up_by_a_client_that_left() -> None:
    done = asyncio.Event()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(500):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        done.set()

    async with serving(partial(asgi.serve, streams)) as served:
        wire = await served.connect(receive_bytes=4096)
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(GET % b"a")
        connection = await served.connection()
        await until(lambda: connection.is_full)
        wire.reset()
        await done.wait()


@pytest.mark.parametrize(
    ("body", "error"), [(b"zz\r\n", BadFraming), (b"5\r\nhel", BodyTimeout)], ids=["broken", "stops"]
)
async def test_the_app_is_told_why_a_body_does_not_come(
    body: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(error):
            while (await receive())["more_body"]:
                pass
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with serving(partial(asgi.serve, answers)) as served:
        wire = await served.connect()
        wire.send(POST % b"a" + b"transfer-encoding: chunked\r\n\r\n" + body)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")

"""An app that listens for its client to leave, as Litestar's streams do, learns that the exchange is over."""

from __future__ import annotations

import asyncio
from typing import Any

from harness.served import GET, serving

from gateway.http import asgi
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request


async def listening(scope: Any, receive: Any, send: Any) -> None:
    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    listener = asyncio.create_task(listen())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    await listener


async def handle(connection: Connection, request: Request, answer: Answer) -> None:
    await asgi.serve(listening, connection, request, answer)


async def test_the_next_request_on_the_connection_is_served() -> None:
    async with serving(handle) as served:
        wire = await served.connect()
        for _ in range(2):
            wire.send(GET % b"x")
            assert (await wire.answer()).body == b"ok"

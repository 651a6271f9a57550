"""The last bytes of an answer leave when its call is done; the first tokens of a stream do not wait for that."""

from __future__ import annotations

import asyncio

import pytest
from harness.served import POST, serving

from gateway.config.table import Bodies
from gateway.core.types import KeyRecord
from gateway.http.answer import Answer
from gateway.http.client import Client
from gateway.http.connection import Connection
from gateway.http.request import Request

KEY = KeyRecord(id="k", name="n", secrets=(), created=1.0)
EVENT, DONE = b'data: {"a":1}\n\n', b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("asked", "data", "early"),
    [
        (b'{"model":"m","stream":true}', EVENT * 2 + DONE, EVENT * 2),
        (b'{"model":"m","stream":true}', DONE, b""),
        (b'{"model":"m","stream":true}', EVENT * 2 + DONE[:-1], EVENT * 2),
        (b'{"model":"m"}', b'{"a":"\n\nb"}\n\n', b""),
    ],
    ids=["stream", "one event", "without a blank line at its end", "whole"],
)
async def test_what_leaves_before_the_call_is_done(asked: bytes, data: bytes, early: bytes) -> None:
    done = asyncio.Event()

    async def serve(connection: Connection, request: Request, answer: Answer) -> None:
        client = Client(connection, request, answer, "chat/completions", Bodies())
        await client.call(KEY)
        client.prepare([(b"content-type", b"text/event-stream")])
        await client.finish(data, lambda: done.wait())  # type: ignore[arg-type,return-value]

    async with serving(serve) as served:
        wire = await served.connect()
        wire.send(POST % b"v1/chat/completions" + b"content-length: %d\r\n\r\n" % len(asked) + asked)
        received = b""
        if early:
            head = await wire.reader.readuntil(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(data) in head
            received = await wire.reader.readexactly(len(early))
            assert received == early
        next_byte = asyncio.ensure_future(wire.reader.readexactly(1))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not next_byte.done()
        done.set()
        received += await next_byte
        if not early:
            received = (received + await wire.reader.readuntil(b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
        assert received + await wire.reader.readexactly(len(data) - len(received)) == data

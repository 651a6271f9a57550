"""A large body is read while others work, one at a time, and is refused by the name of its limit."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest
from harness.client_connection import exchange

from backends import large
from backends.api import Call
from gateway.config.table import Bodies
from gateway.core.errors import BadRequest
from gateway.core.types import KeyRecord
from gateway.http.client import Client
from gateway.http.request import Request

KEY = KeyRecord(id="k", name="n", secrets=(), created=1.0)
TEXT = "The quick brown fox jumps over the lazy dog. " * 70_000
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": TEXT}], "max_tokens": "7"}).encode()
JUNK = b'{"model":"m","messages":[],"junk":[' + b",".join([b'{"":0}'] * 150_000) + b"]}"


async def read(raw: bytes, bodies: Bodies | None = None) -> Call:
    request = Request()
    request.headers = [(b"content-type", b"application/json")]
    request.pieces = [raw[start : start + 65_536] for start in range(0, len(raw), 65_536)]
    request.is_whole = True
    connection, answer = exchange(request)
    return await Client(connection, request, answer, "chat/completions", bodies or Bodies()).call(KEY)


async def turns(seen: list[int]) -> None:
    while True:
        seen[0] += 1
        await asyncio.sleep(0)


async def test_others_have_a_turn_for_each_window() -> None:
    seen = [0]
    other = asyncio.ensure_future(turns(seen))
    call = await read(CHAT)
    other.cancel()
    assert seen[0] >= len(CHAT) // large.WINDOW
    assert (call.model, call.asked.output, call.body.raw) == ("m", 7, CHAT)
    assert call.asked.text == len(CHAT)


async def test_large_bodies_are_read_one_at_a_time() -> None:
    """Between two turns of another only one window is read, however many bodies there are."""
    seen = [0]
    other = asyncio.ensure_future(turns(seen))
    await asyncio.gather(*(read(CHAT) for _ in range(4)))
    other.cancel()
    assert seen[0] >= 4 * (len(CHAT) // large.WINDOW)


async def test_a_caller_that_leaves_lets_the_next_one_in() -> None:
    first = asyncio.ensure_future(read(CHAT))
    second = asyncio.ensure_future(read(CHAT))
    for _ in range(60):
        await asyncio.sleep(0)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert first.cancelled()
    assert (await second).model == "m"


async def test_the_limit_is_named() -> None:
    with pytest.raises(BadRequest, match=r"more than 200000 .*bodies\.elements"):
        await read(JUNK)
    assert (await read(JUNK, Bodies(elements=500_000))).model == "m"


@pytest.mark.parametrize("raw", [CHAT[:-2], CHAT.replace(b"fox", b"\xff", 1), b'{"model":"n",' + CHAT[1:]])
async def test_what_is_wrong_with_a_large_body_is_said(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="the body"):
        await read(raw)

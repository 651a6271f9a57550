"""The pipe to Redis, told anything at all by the server: answers in order, errors, moves, nonsense."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from fuzz.feeding import Harness

from gateway.store import StoreDown
from gateway.store.redis.connection import Pipe, Script, _Wire

ASKED = 4
URLS = ("redis+cluster://h:1", "redis://h:1")


class _Transport:
    """The socket's side of a connection that only the test writes to."""

    def __init__(self) -> None:
        self.written, self.closed = b"", False

    def set_protocol(self, _: Any) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class _Connection:
    """What redis-py hands over once the handshake is done."""

    def __init__(self) -> None:
        self._reader: Any = None
        self._writer: Any = type("Writer", (), {"transport": _Transport()})()


def check(data: bytes) -> None:
    """Each question is answered, fails as an outage, or waits for more; nothing else is raised."""
    if any(len(digits) > 6 for digits in _counts(data)):
        return  # a server that announces millions of elements gets the memory for them: it is ours
    log = logging.getLogger("trunkline.store")
    log.disabled = True  # every other input is an outage
    try:
        for url in URLS:
            asyncio.run(_check(url, data))
    finally:
        log.disabled = False


def _counts(data: bytes) -> list[bytes]:
    """The digits behind each mark of an array."""
    return [bytes(itertools.takewhile(lambda byte: byte in b"+0123456789", part)) for part in data.split(b"*")[1:]]


async def _check(url: str, data: bytes) -> None:
    pipe = Pipe(url, 1.0)
    transport = _connect(pipe)
    answers = [pipe.submit("GET", "a") for _ in range(ASKED - 1)] + [pipe.run(Script(b"return 1"), ["a"])]
    await asyncio.sleep(0)
    wire = pipe._wire
    assert wire is not None and transport.written.count(b"GET") == ASKED - 1
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        if not transport.closed:
            wire.data_received(piece)
    await asyncio.sleep(0)
    states = [answer.done() for answer in answers]
    for answer in answers:
        if answer.done() and (error := answer.exception()) is not None:
            assert isinstance(error, StoreDown), error
    if transport.closed or pipe.down:
        assert transport.closed, "an outage leaves the connection"
        assert all(states) or not pipe.down, "whoever asked hears of the outage"
    elif b"NOSCRIPT" not in data and b"MOVED" not in data:
        assert states == sorted(states, reverse=True), "answers belong to the questions in their order"


def _connect(pipe: Pipe) -> _Transport:
    connection = _Connection()
    transport: _Transport = connection._writer.transport
    pipe._wire = _Wire(connection, pipe)
    return transport


HARNESS = Harness("redis", check)

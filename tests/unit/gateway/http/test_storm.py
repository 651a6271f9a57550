"""Many clients at once that do anything at any moment: each is served in order or not at all, and nothing stays."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Any

import pytest
from harness.served import GET, POST, Served, Wire, serving

from gateway.core.errors import BadFraming, ReaderTooSlow
from gateway.http import connection as module
from gateway.http import listener
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request

CLIENTS = 150


class Fickle:
    """Serves in ways of its own; notes whoever was told of its client's leaving more than once, or too late."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.wrong = dice, list[str]()

    async def __call__(self, connection: Connection, request: Request, answer: Answer) -> None:
        task, told, over = connection.task, list[int](), False
        assert task is not None

        def lost() -> None:
            told.append(1)
            if over or len(told) > 1:
                self.wrong.append(f"{request.target!r}, over: {over}, told: {len(told)}")
            task.cancel()

        connection.on_lost = lost
        try:
            await self._serve(connection, request, answer)
        finally:
            over = True

    async def _serve(self, connection: Connection, request: Request, answer: Answer) -> None:
        for _ in range(self.dice.choice([0, 0, 1, 3])):
            await asyncio.sleep(0)
        with suppress(BadFraming, TimeoutError):
            while self.dice.random() < 0.95 and await connection.more(0.05):
                pass
        body = request.target.ljust(self.dice.choice([10, 100, 300_000]), b".")
        answer.start(200, self.dice.choice([[], [(b"content-length", b"%d" % len(body))]]))
        for at in range(0, len(body) - 1000, 50_000):
            answer.write(body[at : at + 50_000])
            with suppress(ReaderTooSlow):
                await connection.drained(0.05)
        sent = len(range(0, len(body) - 1000, 50_000)) * 50_000
        answer.end(body[sent:])


async def client(served: Served, dice: random.Random) -> None:
    wire = await served.connect(dice.choice([0, 4096]))
    names = [b"%d" % number for number in range(dice.randrange(1, 6))]
    raw = b"".join(dice.choice(REQUESTS) % name for name in names)
    if dice.random() < 0.2:
        raw = raw[: dice.randrange(len(raw))] + dice.choice([b"", b"\0", b"NONSENSE\r\n\r\n"])
    reads = asyncio.ensure_future(answers(wire, names))
    while raw:
        cut = dice.choice([1, 10, 100, len(raw)])
        wire.send(raw[:cut])
        raw = raw[cut:]
        if dice.random() < 0.05:
            break
        await asyncio.sleep(dice.choice([0, 0, 0.001]))
    if dice.random() < 0.5:
        await asyncio.wait([reads], timeout=dice.choice([0, 0.01, 0.1]))
    dice.choice([wire.close, wire.reset])()
    reads.cancel()
    await asyncio.wait([reads])
    if not reads.cancelled():
        reads.result()


async def answers(wire: Wire, names: list[bytes]) -> None:
    """Whatever comes is in order."""
    with suppress(OSError, asyncio.IncompleteReadError):
        for name in names:
            answer = await wire.answer()
            if answer.status != 200:
                return
            assert answer.body.rstrip(b".") == b"/" + name


CHUNKS = POST + b"transfer-encoding: chunked\r\n\r\n"
REQUESTS = (
    GET,
    POST + b"content-length: 5\r\n\r\nhello",
    POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
    POST + b"content-length: 70000\r\n\r\n" + b"x" * 70_000,
    CHUNKS + b"5\r\nhello\r\n0\r\n\r\n",
    CHUNKS + b"1\r\nx\r\n" * 100 + b"0\r\nx: y\r\n\r\n",
    GET.replace(b"\r\nhost", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\nhost"),
)


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm(seed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(module, "UNSENT_SECONDS", 0.05)
    dice, failures = random.Random(seed), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    fickle = Fickle(dice)
    with caplog.at_level(logging.WARNING, "trunkline"):
        async with serving(fickle, head_seconds=0.1) as served, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client(served, random.Random(dice.random())))
    assert not failures
    assert not fickle.wrong
    assert not caplog.records

"""The load generator: many callers at once over keep-alive connections, or a fixed number of calls a second."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle
from typing import cast

LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
LAST_CHUNK = b"\r\n0\r\n\r\n"
EVENTS_AT_LEAST = 64
STALL_SECONDS = 30.0
TICK_SECONDS = 0.5

Tick = Callable[[int], None]
"""Told twice a second how many calls are finished."""

SYSTEM = "You are the support assistant of a hosting company. Answer briefly and name the page of the manual. " * 4
QUESTION = "Which of our replicas should take this call, and what does the manual say about draining one? " * 4


class Stalled(Exception):
    """No call was finished for a long time."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it goes over the wire."""

    raw: bytes
    streams: bool


@dataclass(slots=True)
class Outcome:
    """What became of the calls of one run."""

    calls: int = 0
    failures: int = 0
    first_fault: str | None = None
    seconds: float = 0.0

    def count(self, fault: str | None) -> None:
        self.calls += 1
        if fault is not None:
            self.failures += 1
            self.first_fault = self.first_fault or fault


@dataclass(slots=True)
class Paired:
    """Seconds per call straight to the upstream and through the gateway, measured in turn."""

    direct: list[float] = field(default_factory=list)
    through: list[float] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)


def chat(model: str, secret: str, streams: bool) -> Request:
    """A chat completion of everyday size."""
    body = {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
        "max_tokens": 256,
        "temperature": 0.2,
        **({"stream": True} if streams else {}),
    }
    encoded = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\naccept: */*\r\n"
        f"authorization: Bearer {secret}\r\ncontent-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
    )
    return Request(head.encode() + encoded, streams)


def fault_of(reply: bytes, request: Request) -> str | None:
    """Why this complete reply is not the answer that was asked for."""
    if not reply.startswith(b"HTTP/1.1 200 "):
        return reply[:300].decode(errors="replace")
    if request.streams:
        if b"data: [DONE]" not in reply[-64:]:
            return f"no [DONE] at the end of the stream: {reply[-200:]!r}"
        if (events := reply.count(b"data: ")) < EVENTS_AT_LEAST:
            return f"only {events} events"
    elif b'"usage"' not in reply:
        return f"no usage in the reply: {reply[-200:]!r}"
    return None


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one call on it."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport
        self._reply = bytearray()
        self._ends_at = 0
        self._finished: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._finished is not None and not self._finished.done():
            self._finished.set_exception(ConnectionError(f"closed after {bytes(self._reply[:200])!r}"))

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if self._finished is not None and not self._finished.done() and self._is_complete():
            self._finished.set_result(bytes(self._reply))

    def _is_complete(self) -> bool:
        if not self._ends_at and (head_end := self._reply.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self._reply, 0, head_end)
            self._ends_at = head_end + 4 + int(length[1]) if length else -1
        if self._ends_at < 0:
            return self._reply.endswith(LAST_CHUNK)
        return 0 < self._ends_at <= len(self._reply)

    async def ask(self, request: Request) -> str | None:
        """Send the request, read the whole reply, and say what is wrong with it."""
        self._reply.clear()
        self._ends_at = 0
        self._finished = asyncio.get_running_loop().create_future()
        self._transport.write(request.raw)
        try:
            return fault_of(await self._finished, request)
        except ConnectionError as error:
            return str(error)

    def close(self) -> None:
        if self.is_open:
            self._transport.close()


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def watch(outcome: Outcome, tick: Tick) -> None:
    """Report progress, and end the run when there is none."""
    finished, since = 0, time.monotonic()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        tick(outcome.calls)
        if outcome.calls != finished:
            finished, since = outcome.calls, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise Stalled(f"no call was finished in {STALL_SECONDS:.0f} s, {outcome.calls} before that")


async def closed_loop(port: int, requests: Sequence[Request], calls: int, clients: int, tick: Tick) -> Outcome:
    """Make this many calls from concurrent clients, each sending its next call when its last was answered."""
    outcome = Outcome()
    turns = iter(range(calls))
    upcoming = cycle(requests)

    async def client() -> None:
        connection = await connect(port)
        for _ in turns:
            if not connection.is_open:
                connection = await connect(port)
            outcome.count(await connection.ask(next(upcoming)))
        connection.close()

    started = time.perf_counter()
    watching = asyncio.create_task(watch(outcome, tick))
    working = asyncio.gather(*(client() for _ in range(clients)))
    await finish_first(working, watching)
    outcome.seconds = time.perf_counter() - started
    return outcome


async def finish_first(working: asyncio.Future[list[None]], watching: asyncio.Task[None]) -> None:
    """Wait for the work, or for the watch to give it up."""
    await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    try:
        if watching.done():
            watching.result()
        await working
    finally:
        watching.cancel()
        working.cancel()


async def open_loop(ports: tuple[int, int], request: Request, calls: int, rate: float, tick: Tick) -> Paired:
    """Send this many calls a second to each port by the clock, half a period apart, whatever is still under way."""
    paired = Paired()
    pools: dict[int, list[Connection]] = {port: [] for port in ports}

    async def one(port: int, seconds: list[float]) -> None:
        pool = pools[port]
        connection = pool.pop() if pool else await connect(port)
        started = time.perf_counter()
        fault = await connection.ask(request)
        seconds.append(time.perf_counter() - started)
        paired.outcome.count(fault)
        if connection.is_open:
            pool.append(connection)

    async def send() -> list[None]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        under_way = []
        for turn in range(2 * calls):
            await asyncio.sleep(started + turn / (2 * rate) - loop.time())
            seconds = paired.through if turn % 2 else paired.direct
            under_way.append(asyncio.create_task(one(ports[turn % 2], seconds)))
        return await asyncio.gather(*under_way)

    await finish_first(asyncio.ensure_future(send()), asyncio.create_task(watch(paired.outcome, tick)))
    for connection in chain.from_iterable(pools.values()):
        connection.close()
    return paired

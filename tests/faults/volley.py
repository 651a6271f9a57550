"""Many calls at once, each on a connection of its own, and everything about each of them that a test may ask."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

PROMPT, OUTPUT = 40, 24
CALL = PROMPT + OUTPUT
"""Tokens of a call of `chat`, as the gateway estimates them and as the scripted target reports them."""


def chat(model: str, secret: str, *, stream: bool = False) -> bytes:
    """A chat call of four bytes for each of its `PROMPT` tokens, which is what the gateway takes a token for."""
    body = {"model": model, "max_tokens": OUTPUT, "stream": stream, "messages": [{"role": "user", "content": ""}]}
    text = json.dumps(body, separators=(",", ":"))
    missing = 4 * PROMPT - len(text)
    assert missing >= 0, "the model's name is too long for a call of this size"
    return post(text.replace('"content":""', '"content":"' + "x" * missing + '"').encode(), secret)


def post(body: bytes, secret: str, endpoint: str = "chat/completions") -> bytes:
    """The bytes of a call with this body."""
    head = (
        f"POST /v1/{endpoint} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {secret}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_open: set[Exchange] = set()


class Exchange(asyncio.Protocol):
    """One call. `status` is 0 as long as no head has come; times are of the monotonic clock."""

    def __init__(self, raw: bytes, label: str = "") -> None:
        self.raw, self.label = raw, label
        self.status, self.headers = 0, dict[str, str]()
        self.seen = bytearray()
        self.sent = self.answered = self.finished = 0.0
        self.whole = False
        """The answer has come to its end, as its framing tells it."""
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[None] = loop.create_future()
        self.end: asyncio.Future[None] = loop.create_future()
        """Set when the answer is whole, or its connection closed."""
        self._body = -1
        self._transport: asyncio.Transport | None = None

    async def join(self, port: int) -> None:
        """Connect, and say nothing yet."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)

    def send(self) -> None:
        assert self._transport is not None
        self.sent = time.monotonic()
        self._transport.write(self.raw)

    @property
    def body(self) -> bytes:
        return bytes(self.seen[self._body :]) if self._body >= 0 else b""

    @property
    def degraded(self) -> bool:
        return "x-trunkline-degraded" in self.headers

    @property
    def seconds(self) -> float:
        """From sending to the end of the answer."""
        return self.finished - self.sent

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection, as a client that has enough of it does; or as one that crashed."""
        if self._transport is None:
            return
        if reset:
            opened: socket.socket = self._transport.get_extra_info("socket")
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _open.add(self)

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if not self.status:
            self._read_head()
        if self.status and not self.whole and self._is_whole():
            self.whole = True
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        _open.discard(self)
        self._finish()

    def _read_head(self) -> None:
        at = self.seen.find(b"\r\n\r\n")
        if at < 0:
            return
        lines = bytes(self.seen[:at]).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
        self._body = at + 4
        self.answered = time.monotonic()
        self.head.set_result(None)

    def _is_whole(self) -> bool:
        if (length := self.headers.get("content-length")) is not None:
            return len(self.seen) >= self._body + int(length)
        return self.seen.endswith(b"0\r\n\r\n")

    def _finish(self) -> None:
        if not self.end.done():
            self.finished = time.monotonic()
            self.end.set_result(None)
        if not self.head.done():
            self.head.set_result(None)


async def volley(
    ports: Sequence[int], raws: Iterable[bytes], *, hold: bool = False, seconds: float = 60
) -> list[Exchange]:
    """Connect all, by turns to these ports, then send all at once; return with all answers, `hold`: with all heads."""
    calls = [Exchange(raw) for raw in raws]
    for start in range(0, len(calls), 500):
        step = calls[start : start + 500]
        await asyncio.gather(*(call.join(ports[(start + at) % len(ports)]) for at, call in enumerate(step)))
    for call in calls:
        call.send()
    await asyncio.wait([call.head if hold else call.end for call in calls], timeout=seconds)
    if not hold:
        leave(calls)
    return calls


async def hang_up() -> None:
    """Close every connection that is still open, and let that happen: the end of a test, however it ended."""
    leave(list(_open))
    while _open:
        await asyncio.sleep(0)


def leave(calls: Iterable[Exchange]) -> None:
    """Close whatever of these is still open."""
    for call in calls:
        call.leave()


async def steady(
    ports: Sequence[int], raws: Sequence[tuple[str, bytes]], rate: float, until: Callable[[], bool]
) -> list[Exchange]:
    """So many calls a second by the clock, whatever is still under way, labelled; until told, then all are awaited."""
    loop = asyncio.get_running_loop()
    calls: list[Exchange] = []
    tasks: list[asyncio.Task[None]] = []
    started, turn = loop.time(), 0
    while not until():
        label, raw = raws[turn % len(raws)]
        call = Exchange(raw, label)
        calls.append(call)
        tasks.append(loop.create_task(_lone(call, ports[turn // len(raws) % len(ports)])))
        turn += 1
        await asyncio.sleep(max(0.0, started + turn / rate - loop.time()))
    await asyncio.wait(tasks, timeout=120)
    return calls


async def _lone(call: Exchange, port: int) -> None:
    await call.join(port)
    call.send()
    await call.end
    call.leave()


async def eventually(look: Callable[[], bool], what: str | Callable[[], str], seconds: float = 10) -> float:
    """Wait until this is so, letting calls under way go on; how many seconds that took."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def percentile(values: Iterable[float], share: float) -> float:
    """The value that this share of them does not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

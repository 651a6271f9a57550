"""Callers that begin by the clock, whatever is still under way: open streams, and the time to a first token.

One loop over epoll without a framework: it must read tens of thousands of events a second beside the stub on one core.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

READ_BYTES = 1 << 18
LAST_CHUNK = b"0\r\n\r\n"
STALL_SECONDS = 30.0
CATCH_UP_SECONDS = 0.2
"""To take a sample takes a while, in which nothing is read: gaps count from so long after it."""
Sample = TypeVar("Sample")


class Broken(Exception):
    """A stream ended early, or nothing came any more."""


@dataclass(slots=True)
class Streams(Generic[Sample]):
    """What came in a window of time in which all streams were open."""

    first: Sample
    last: Sample
    events: int = 0
    gaps: list[float] = field(default_factory=list)
    """Seconds between two reads of a stream that brought events."""


class _Open:
    """A stream under way."""

    __slots__ = ("at", "socket")

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=STALL_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)
        self.socket.setblocking(False)
        self.at = time.monotonic()
        """When it was last read from."""


class Loop:
    """Open connections, and one wait for all of them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._open: dict[int, _Open] = {}

    def close(self) -> None:
        for each in self._open.values():
            each.socket.close()
        self._epoll.close()

    def open(self, port: int, request: bytes) -> None:
        """Connect and send. Raises `OSError`."""
        stream = _Open(port, request)
        self._open[stream.socket.fileno()] = stream
        self._epoll.register(stream.socket.fileno(), select.EPOLLIN)

    def read_until(self, end: float) -> Iterator[tuple[_Open, bytes, float]]:
        """What comes until then, and when. Raises `Broken` when a stream ends."""
        while (left := end - time.monotonic()) > 0:
            for number, _ in self._epoll.poll(left):
                stream = self._open[number]
                try:
                    data = stream.socket.recv(READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Broken(f"a stream ended early: {error}") from None
                if not data or data.endswith(LAST_CHUNK):
                    raise Broken(f"a stream ended early: {data[-300:]!r}")
                yield stream, data, time.monotonic()


def hold(
    port: int, request: bytes, streams: int, spread: float, seconds: float, sample: Callable[[], Sample]
) -> Streams[Sample]:
    """Open so many paced streams over `spread` seconds, then look at them for so many seconds.

    Raises `Broken` and `OSError`.
    """
    loop = Loop()
    try:
        begin = time.monotonic()
        for number in range(streams):
            for stream, _, now in loop.read_until(begin + spread * number / streams):
                stream.at = now
            loop.open(port, request)
        begin = time.monotonic() + max(0.5, spread / 2)
        for stream, _, now in loop.read_until(begin):
            stream.at = now
        first = sample()
        seen = Streams(first, first)
        end, gaps_from = time.monotonic() + seconds, time.monotonic() + CATCH_UP_SECONDS
        for stream, data, now in loop.read_until(end):
            if events := data.count(b"data: "):
                seen.events += events
                if now > gaps_from:
                    seen.gaps.append(now - stream.at)
                stream.at = now
        seen.last = sample()
        return seen
    finally:
        loop.close()


@dataclass(slots=True)
class FirstTokens:
    """Seconds from a call to the first bytes of its answer that are an event, by port."""

    seconds: dict[int, list[float]]


class _Caller:
    """A keep-alive connection that makes one call after the other."""

    __slots__ = ("began", "is_waiting", "port", "socket", "tail")

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=STALL_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.is_waiting, self.tail = 0.0, False, b""

    def begin(self, request: bytes) -> None:
        self.began, self.is_waiting, self.tail = time.perf_counter(), True, b""
        self.socket.sendall(request)

    def take(self) -> float | None:
        """Read; the seconds to the first event, if this was it. Raises `Broken`."""
        data = self.socket.recv(READ_BYTES)
        now = time.perf_counter()
        if not data or (self.is_waiting and not self.tail and not data.startswith(b"HTTP/1.1 200")):
            raise Broken(f"no answer: {data[:300]!r}")
        self.tail = (self.tail + data)[-64:]
        if self.is_waiting and b"data: " in data:
            self.is_waiting = False
            return now - self.began
        return None

    @property
    def is_free(self) -> bool:
        return self.tail.endswith(LAST_CHUNK)


def first_tokens(requests: Sequence[tuple[int, bytes]], calls: int, rate: float) -> FirstTokens:
    """Make `rate` calls a second to each port, in turn and evenly spaced. Raises `Broken` and `OSError`."""
    epoll, callers = select.epoll(), dict[int, _Caller]()
    free: dict[int, list[_Caller]] = {port: [] for port, _ in requests}
    found = FirstTokens({port: [] for port, _ in requests})

    def collect(until: float) -> None:
        while (left := until - time.perf_counter()) > 0:
            for number, _ in epoll.poll(left):
                caller = callers[number]
                if (seconds := caller.take()) is not None:
                    found.seconds[caller.port].append(seconds)
                if caller.is_free:
                    free[caller.port].append(caller)

    try:
        begin = time.perf_counter()
        for turn in range(calls * len(requests)):
            collect(begin + turn / (rate * len(requests)))
            port, request = requests[turn % len(requests)]
            if not free[port]:
                fresh = _Caller(port)
                callers[fresh.socket.fileno()] = fresh
                epoll.register(fresh.socket.fileno(), select.EPOLLIN)
                free[port].append(fresh)
            free[port].pop().begin(request)
        collect(time.perf_counter() + 0.5)
        return found
    finally:
        for caller in callers.values():
            caller.socket.close()
        epoll.close()

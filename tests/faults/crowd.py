"""Many raw connections at once, and what they cost the gateway."""

from __future__ import annotations

import resource
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest
from harness.gateway_process import GatewayProcess

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def allow_files(count: int) -> None:
    """Raise the limit of open files, for this process and those it starts; skip the test if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard not in (-1, resource.RLIM_INFINITY) and hard < count:
            pytest.skip(f"{count} open files are needed, {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def worker(gateway: GatewayProcess) -> Any:
    """The process that serves."""
    return psutil.Process(gateway.process.pid).children()[0]


def resident(gateway: GatewayProcess) -> int:
    """Bytes of memory that the serving process holds."""
    size: int = worker(gateway).memory_info().rss
    return size


@contextmanager
def joined(port: int, count: int, sent: bytes = b"", room: int = 0) -> Iterator[list[socket.socket]]:
    """So many connections on which `sent` was said; `room` bytes for what comes back."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.socket()
            opened.append(one)
            if room:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            one.settimeout(20)
            one.connect(("127.0.0.1", port))
            if sent:
                one.sendall(sent)
        yield opened
    finally:
        for one in opened:
            one.close()


def read_until(connections: Sequence[socket.socket], mark: bytes, seconds: float = 30) -> int:
    """Read on all until `mark` has come on each; on how many it has."""
    waits = dict.fromkeys(connections, b"")
    found, deadline = 0, time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ)
        while waits and time.monotonic() < deadline:
            for key, _ in selector.select(0.2):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                piece = _piece(one)
                waits[one] = (waits[one] + piece)[-4096:]
                if mark in waits[one] or not piece:
                    found += mark in waits[one]
                    selector.unregister(one)
                    del waits[one]
    return found


def closed_within(connections: Sequence[socket.socket], seconds: float) -> list[float]:
    """Seconds after which each was closed by the other side; those that were not are left out."""
    began, times = time.monotonic(), list[float]()
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ)
        while selector.get_map() and (now := time.monotonic()) < began + seconds:
            for key, _ in selector.select(0.2):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if not _piece(one):
                    times.append(now - began)
                    selector.unregister(one)
    return times


def newcomers(port: int, count: int, sent: bytes = HEALTH) -> list[float]:
    """Seconds that each of so many new clients takes from connecting to the first byte of its answer."""
    times = []
    for _ in range(count):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            one.sendall(sent)
            assert one.recv(12).startswith(b"HTTP/1.1 200")
        times.append(time.monotonic() - began)
    return times


def p99(times: Sequence[float]) -> float:
    """Milliseconds."""
    if len(times) < 2:
        return max(times, default=0.0) * 1000
    return statistics.quantiles(times, n=100, method="inclusive")[98] * 1000


def _piece(one: socket.socket) -> bytes:
    with suppress(OSError):
        return one.recv(65536)
    return b""

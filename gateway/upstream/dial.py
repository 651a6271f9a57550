"""How a connection is made: from names to addresses, one address after the other, through a proxy, with TLS."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.core.errors import Disconnected, Unreachable, UpstreamError
from gateway.upstream.connection import Connection, spoken
from gateway.upstream.http1 import Answer
from gateway.upstream.origin import Origin, Place, Proxy

Address = tuple[int, tuple[object, ...]]
"""A socket's family and address."""
Resolve = Callable[[str, int], Awaitable[list[Address]]]
Make = Callable[[], Connection]

KNOWN_SECONDS: Final = 5.0
"""How long the addresses of a name are used before it is looked up again."""
LEAST_SECONDS: Final = 0.25
"""For one address, where several share the time."""


async def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the order in which the operating system would try them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


class Dialer:
    """Makes connections, and remembers for a few seconds where names lead to."""

    def __init__(self, resolve: Resolve = look_up) -> None:
        self._resolve = resolve
        self._known: dict[Place, tuple[float, list[Address]]] = {}
        self._looking: dict[Place, asyncio.Task[list[Address]]] = {}

    def close(self) -> None:
        """Look nothing up any more."""
        for task in self._looking.values():
            task.cancel()

    async def connect(self, origin: Origin, make: Make, until: float) -> Connection:
        """A connection on which requests can be sent. Raises `Unreachable`, `OSError`, `UnicodeError`."""
        place = origin.place if origin.proxy is None else origin.proxy.place
        if place.unix:
            return await _open(socket.AF_UNIX, place.unix, origin, make)
        try:
            return await _first(await self._addresses(place), origin, make, until)
        except Unreachable:
            self._known.pop(place, None)  # it may have moved
            raise

    async def _addresses(self, place: Place) -> list[Address]:
        if literal := _literal(place):
            return literal
        at, addresses = self._known.get(place, (0.0, []))
        if addresses and time.monotonic() - at < KNOWN_SECONDS:
            return addresses
        task = self._looking.get(place)
        if task is None:  # all that wait for a name wait for one answer; who is cancelled leaves the others waiting
            task = self._looking[place] = asyncio.create_task(self._look_up(place))
            task.add_done_callback(lambda task: self._looked_up(place, task))
        return await asyncio.shield(task)

    def _looked_up(self, place: Place, task: asyncio.Task[list[Address]]) -> None:
        self._looking.pop(place, None)
        if not task.cancelled():
            task.exception()  # those who waited have it; if none does any more, it is nobody's

    async def _look_up(self, place: Place) -> list[Address]:
        addresses = await self._resolve(place.host, place.port)
        if not addresses:
            raise OSError(f"{place.host} has no address")
        self._known[place] = time.monotonic(), addresses
        return addresses


def _literal(place: Place) -> list[Address]:
    """The address of a host that is one; nothing for a name."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [(family, address) for family, _, _, _, address in found]


async def _first(addresses: list[Address], origin: Origin, make: Make, until: float) -> Connection:
    """The first of the addresses that connects; each gets its part of the time that is left."""
    loop = asyncio.get_running_loop()
    failures: list[str] = []
    for number, address in enumerate(addresses):
        share = max(LEAST_SECONDS, (until - loop.time()) / (len(addresses) - number))
        try:
            async with asyncio.timeout(share):
                return await _open(*address, origin, make)
        except TimeoutError:
            failures.append(f"{address[1][0]}: no connection within {share:g} s")
        except OSError as error:
            failures.append(f"{address[1][0]}: {spoken(error)}")
    raise Unreachable("; ".join(failures))


async def _open(family: int, address: tuple[object, ...] | str, origin: Origin, make: Make) -> Connection:
    """A connection to one address, or to the unix socket at a path."""
    loop, tls = asyncio.get_running_loop(), origin.tls
    context = None if tls is None else await asyncio.to_thread(tls.context)  # it may read hundreds of certificates
    connection, opened = make(), await _connected(family, address)
    try:
        if family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: connection, sock=opened)
        elif tls is None:
            await loop.create_connection(lambda: connection, sock=opened)
        else:
            if origin.proxy is not None:
                await _tunnel(opened, origin.proxy, origin.place)
            name = tls.server_name
            await loop.create_connection(lambda: connection, sock=opened, ssl=context, server_hostname=name)
    except BaseException:
        connection.abort()
        with suppress(OSError):  # uvloop would go on with a handshake that nobody waits for any more
            opened.shutdown(socket.SHUT_RDWR)
        opened.close()
        raise
    connection.socket = opened
    return connection


async def _connected(family: int, address: tuple[object, ...] | str) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        if family != socket.AF_UNIX:
            # Requests and what is left of one leave at once, whatever has not been acknowledged.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(opened, address)
    except BaseException:
        opened.close()
        raise
    return opened


async def _tunnel(opened: socket.socket, proxy: Proxy, place: Place) -> None:
    """Let the proxy connect to a place; what is sent and comes from then on is that one's."""
    loop = asyncio.get_running_loop()
    request = f"CONNECT {place.authority} HTTP/1.1\r\nhost: {place.authority}\r\n".encode()
    if proxy.credentials:
        request += b"proxy-authorization: %b\r\n" % proxy.credentials
    await loop.sock_sendall(opened, request + b"\r\n")
    answer = Answer(without_body=True)
    try:
        while not answer.status:
            if not (data := await loop.sock_recv(opened, 4096)):
                raise Disconnected(answer.missing())
            answer.feed(data)
    except UpstreamError as error:
        raise Unreachable(f"the proxy: {error.message}") from error
    if not 200 <= answer.status < 300:
        raise Unreachable(f"the proxy refuses to connect: status {answer.status}")

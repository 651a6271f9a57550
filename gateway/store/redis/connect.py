"""Where Redis is: one server, the master that sentinels name, or the node of a cluster that has our slot.

redis-py is loaded with the first connection: the main process, which only looks at URLs, has no use for 10 MiB of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from redis.asyncio import Connection

SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"
SCHEMES = ("redis", "rediss", "unix", SENTINEL, CLUSTER)

Address = tuple[str, int]


class Connector:
    """Makes connections to the server that takes our writes, wherever it has moved to."""

    def __init__(self, url: str, timeout: float) -> None:
        """Raises `ValueError`, without any part of the URL, for what is none."""
        self._url, self._timeout = url, timeout
        scheme, _, rest = url.partition("://")
        self._connect: Callable[[], Awaitable[Connection]] = self._plain
        self._seeds: list[Address] = []
        self._moved: Address | None = None
        if scheme not in SCHEMES:
            allowed = ", ".join(f"{known}://" for known in SCHEMES)
            raise ValueError(f"the Redis URL must begin with one of {allowed}")
        try:
            if scheme in (SENTINEL, CLUSTER):
                self._many(scheme, rest)
            else:
                _ = urlsplit(url).port
                database = "" if scheme == "unix" else urlsplit(url).path.strip("/")
                if database and not database.isdecimal():
                    raise _Unusable("the database behind the last slash must be a number, such as 0")
                if "?" in url:  # its options are redis-py's to read
                    from redis.asyncio import ConnectionPool

                    ConnectionPool.from_url(url)
        except ValueError as error:
            # What the parser says may hold the password.
            said = str(error) if isinstance(error, _Unusable) else "expected one such as redis://host:6379/0"
            raise ValueError(f"the Redis URL cannot be read: {said}") from None

    async def connect(self) -> Connection:
        """A connection with its handshake done. Raises what redis-py raises when there is none."""
        return await self._connect()

    def moved(self, message: str) -> None:
        """A cluster said `MOVED slot host:port`: connect there from now on, until that fails."""
        host, _, port = message.rpartition(" ")[2].rpartition(":")
        known = port.isascii() and port.isdigit() and len(port) <= 5
        self._moved = (host or (self._moved or self._seeds[0])[0], int(port)) if known else None

    def _many(self, scheme: str, rest: str) -> None:
        login, _, where = rest.rpartition("@")
        hosts, _, path = where.partition("/")
        user, _, password = login.partition(":")
        self._login: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(password) or None}
        default = 26379 if scheme == SENTINEL else 6379
        self._seeds = [_address(host, default) for host in hosts.split(",") if host]
        if not self._seeds or "?" in rest or ":" in path:
            raise _Unusable(f"expected {scheme}://[user:password@]host:port,host:port/...")
        if scheme == CLUSTER:
            self._connect = self._cluster
            return
        self._service, _, database = path.partition("/")
        self._database = int(database or 0)
        if not self._service:
            raise _Unusable(f"{SENTINEL}://host:port/NAME needs the name that the sentinels know the master by")
        self._connect = self._sentinel

    async def _plain(self) -> Connection:
        from redis.asyncio import ConnectionPool

        pool = ConnectionPool.from_url(self._url, **self._options())
        connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    async def _sentinel(self) -> Connection:
        from redis.asyncio import Sentinel

        timeouts = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        sentinel = Sentinel(self._seeds, **timeouts)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self._service)
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        return await self._open((host, port), self._database)

    async def _cluster(self) -> Connection:
        """The node we were sent to, else the first seed that answers; the wrong one will say where to go."""
        target, self._moved = self._moved, None
        failed: Exception = ConnectionError("no cluster node answers")
        for address in [target] if target is not None else self._seeds:
            try:
                connection = await self._open(address, 0)
                self._moved = target
                return connection
            except Exception as error:
                failed = error
        self._seeds = [*self._seeds[1:], self._seeds[0]]
        raise failed

    async def _open(self, address: Address, database: int) -> Connection:
        from redis.asyncio import Connection

        host, port = address
        connection = Connection(host=host, port=port, db=database, **self._login, **self._options())
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    def _options(self) -> dict[str, Any]:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # One attempt and no time-out of redis-py's own: a second try could charge twice, the pipe keeps the time.
        return {
            "socket_timeout": None,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }


def _address(text: str, default: int) -> Address:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or default


class _Unusable(ValueError):
    """Says what is wrong in words of ours."""

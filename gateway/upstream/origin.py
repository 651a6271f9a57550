"""A target as requests reach it: bound when the table is loaded, so that a call has nothing to work out."""

from __future__ import annotations

import math
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from gateway.upstream.connection import Connection

KNOWN_STARTS = 64
DEFAULT_PORTS = {"http": 80, "https": 443}


class Place(Struct, frozen=True):
    """Where a socket connects to: a host and a port, or the path of a unix socket."""

    host: str
    port: int = 0
    unix: str = ""

    @property
    def authority(self) -> str:
        """As it stands in a URL: IPv6 addresses in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Proxy(Struct, frozen=True):
    """An HTTP proxy. `credentials` is the value of `proxy-authorization`, empty without one."""

    place: Place
    credentials: bytes = b""

    @classmethod
    def at(cls, url: str) -> Proxy:
        """The proxy of this URL, which is `http://[user:password@]host[:port]`."""
        parts = urlsplit(url)
        credentials = b""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = b"Basic " + b64encode(pair.encode())
        return cls(Place(parts.hostname or "", parts.port or 80), credentials)


class TLS(Struct, frozen=True):
    """`context` gives the context for a new connection; `server_name` is what its certificate must be for."""

    context: Callable[[], ssl.SSLContext]
    server_name: str


class Origin:
    """One target as requests reach it, and the connections to it.

    Counts for metrics: `open` connections, `made` and `reused` since the start; `idle` are those that wait, the one
    used last at the end, `connections` are all; `heard_at` is when output of a call that is over last came, in the
    loop's time; `seconds` has how long it took to make each since it was last emptied. `url` is where
    questions are asked, `path` its path, which stands before all others; a unix socket's are `http://localhost`'s.
    """

    __slots__ = (
        "__weakref__",
        "_prefix",
        "_tail",
        "connections",
        "forwarded",
        "heard_at",
        "idle",
        "made",
        "name",
        "open",
        "path",
        "place",
        "proxy",
        "reused",
        "seconds",
        "starts",
        "tls",
        "url",
    )

    def __init__(
        self,
        name: str,
        url: str,
        *,
        tls: TLS | None = None,
        proxy: Proxy | None = None,
        headers: Mapping[str, str] | None = None,
        forwarded: tuple[bytes, ...] = (),
    ) -> None:
        """`name` labels metrics; `url` is `http://`, `https://` or `unix://`; an `https://` one needs `tls`.

        `headers` go with every request. They must hold no line breaks; a `host` among them goes before the URL's.
        `forwarded` are the names, in lower case, of a call's headers that go on to the target.
        """
        self.name, self.tls, self.proxy, self.forwarded = name, tls, proxy, forwarded
        self.place, path = place_of(url)
        self.url, self.path = "http://localhost" if self.place.unix else url.rstrip("/"), path
        fields = {key.lower(): value for key, value in (headers or {}).items()}
        host = fields.pop("host", None) or _host(url, self.place)
        if proxy is not None and tls is None:
            path = f"http://{host}{path}"
            if proxy.credentials:
                fields["proxy-authorization"] = proxy.credentials.decode()
        self._prefix = path.encode()
        lines = [f"{key}: {value}\r\n" for key, value in {"host": host, **fields}.items()]
        self._tail = b" HTTP/1.1\r\n" + "".join(lines).encode()
        self.starts: dict[tuple[str, str], bytes] = {}
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self.heard_at = -math.inf
        self.open = self.made = self.reused = 0
        self.seconds: list[float] = []

    def start(self, method: str, path: str) -> bytes:
        """A request's first line and the fields that are always the same. `path` begins with a slash."""
        start = b"%b %b%b%b" % (method.encode(), self._prefix, path.encode(), self._tail)
        if method == "POST" and len(self.starts) < KNOWN_STARTS:  # adapters have a handful of paths
            self.starts[method, path] = start
        return start


def place_of(url: str) -> tuple[Place, str]:
    """Where the server of a URL is, and the path in front of all others there, without a slash at its end."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Place("localhost", unix=unquote(parts.path)), ""
    return Place(parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]), parts.path.rstrip("/")


def _host(url: str, place: Place) -> str:
    """The value of `host`: without the port where it is the scheme's own."""
    if place.unix:
        return "localhost"
    authority, port = place.authority, DEFAULT_PORTS.get(urlsplit(url).scheme)
    return authority.removesuffix(f":{port}")

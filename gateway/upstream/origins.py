"""The origins of a table: made once for each target, and kept over reloads for targets that are reached as before."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined] # typeshed

from msgspec import Struct

from backends.api import Target as Address
from gateway.config import Table, TLSSpec
from gateway.config.connections import ENVIRONMENT
from gateway.upstream.origin import TLS, Origin, Proxy


class Contexts:
    """The TLS context of one part of the table, made anew when one of its files has changed. Raises `OSError`."""

    def __init__(self, spec: TLSSpec) -> None:
        self._spec = spec
        self._context: ssl.SSLContext | None = None
        self._seen: list[tuple[int, int]] = []

    def __call__(self) -> ssl.SSLContext:
        """The context for a new connection."""
        seen = [(found.st_mtime_ns, found.st_ino) for found in map(os.stat, self._spec.files)]
        if self._context is None or seen != self._seen:
            self._context, self._seen = self._spec.context(), seen
        return self._context


class Reach(Struct, frozen=True):
    """How a target is reached, beside its URL."""

    tls: TLSSpec = TLSSpec()
    proxy: Proxy | None = None
    headers: tuple[tuple[str, str], ...] = ()
    forwarded: tuple[bytes, ...] = ()


class Origins:
    """Finds the origin of a target's address. Without a table every target is reached as its URL says."""

    def __init__(self) -> None:
        self._reach: dict[str, Reach] = {}
        self._known: dict[tuple[str, str, Reach], Origin] = {}
        self.found: dict[Address, Origin] = {}
        """Those that were asked for since a table was bound; `of` finds the others."""
        self._left: list[Origin] = []
        """Of tables before, with connections still."""
        self._contexts: dict[TLSSpec, Contexts] = {}

    def bind(self, table: Table) -> None:
        """Reach targets as `table` says from now on. Raises `ValueError`, changing nothing, if the environment's proxy
        is to be used and cannot be."""
        reach, urls = {}, {}
        for _, route, target in table.targets():
            proxy, urls[target.name] = None, target.url and target.url.rstrip("/")
            if target.url is not None and (url := target.proxy or route.proxy) is not None:
                proxy = from_environment(target.url) if url == ENVIRONMENT else Proxy.at(url)
            forwarded = tuple(name.lower().encode() for name in (*route.forward_headers, *route.session_headers))
            reach[target.name] = Reach(target.tls or TLSSpec(), proxy, tuple(target.headers.items()), forwarded)
        self._reach = reach
        self.found.clear()
        for name, url, before in tuple(self._known):
            if reach.get(name) != before or urls[name] not in (None, url):
                self._left.append(self._known.pop((name, url, before)))

    def of(self, address: Address) -> Origin:
        """The origin of a target."""
        origin = self.found.get(address)
        if origin is None:
            reach = self._reach.get(address.name, Reach())
            key = address.name, address.url, reach
            origin = self._known.get(key)
            if origin is None:
                origin = self._known[key] = self._made(address, reach)
            self.found[address] = origin
        return origin

    def __iter__(self) -> Iterator[Origin]:
        """All that may have connections."""
        left = self._left
        self._left = [origin for origin in left if origin.open]
        yield from self._known.values()
        yield from left

    def _made(self, address: Address, reach: Reach) -> Origin:
        tls, parts = None, urlsplit(address.url)
        if parts.scheme == "https":
            contexts = self._contexts.setdefault(reach.tls, Contexts(reach.tls))
            tls = TLS(contexts, reach.tls.server_name or parts.hostname or "")
        headers = dict(reach.headers)
        return Origin(address.name, address.url, tls=tls, proxy=reach.proxy, headers=headers, forwarded=reach.forwarded)


def from_environment(url: str) -> Proxy | None:
    """The proxy that `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name for a URL. Raises `ValueError` for one that is no
    HTTP proxy."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    named = proxies.get(parts.scheme, "")
    if not named or proxy_bypass_environment(parts.netloc, proxies):
        return None
    text = named if "://" in named else f"http://{named}"
    if not text.startswith("http://") or not urlsplit(text).hostname:
        raise ValueError(f"{parts.scheme.upper()}_PROXY: expected a URL such as 'http://proxy:3128'")
    return Proxy.at(text)

"""Host names behind which there are several servers: a target is one server, and the gateway uses one address of it."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.config.located import Document

if TYPE_CHECKING:
    from gateway.config.table import Place, RouteSpec, TargetSpec

LOOK_UP_SECONDS: Final = 2.0
"""For all names of a table together; what is not known by then is not told."""
AT_ONCE: Final = 64
"""Names that are looked up at the same time."""
SHOWN: Final = 4


def check_addresses(document: Document, targets: Iterable[tuple[Place, RouteSpec, TargetSpec]]) -> None:
    """Warn of every target whose host name has several addresses. Names that cannot be looked up are no mistake here.

    A target behind a proxy is left out: it is the proxy that looks its name up.
    """
    named: list[tuple[Place, str, TargetSpec, str]] = []
    for path, route, target in targets:
        host = _name_in(target.url)
        if host and target.proxy is None and route.proxy is None:
            named.append((path, str(path[1]), target, host))
    addresses = look_up({host for _, _, _, host in named}, LOOK_UP_SECONDS)
    for path, name, target, host in named:
        found = addresses.get(host, ())
        if len(found) < 2:
            continue
        shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        told = (
            f"route {name!r}, target {target.name!r}: the host {host!r} has {len(found)} addresses ({shown}), of which "
            "a gateway uses one at a time. Servers of their own are targets of their own: list each with its address, "
            "or write 'discover' in the place of 'url'. If they are one server, all is well"
        )
        document.report((*path, "url"), told, warning=True)


def look_up(hosts: Iterable[str], seconds: float) -> Mapping[str, tuple[str, ...]]:
    """The addresses of the names that answer within the time. Raises nothing.

    A host that has one address of each family is one server, reached in two ways: the family with most counts.
    """
    waiting, found = deque(sorted(hosts)), dict[str, tuple[str, ...]]()

    def work() -> None:
        while waiting:
            try:
                host = waiting.popleft()
            except IndexError:  # another was faster
                return
            found[host] = _addresses(host)

    # A resolver cannot be interrupted: threads that nobody waits for end with the process.
    threads = [threading.Thread(target=work, name="look-up", daemon=True) for _ in range(min(AT_ONCE, len(waiting)))]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    waiting.clear()
    return found.copy()


def _addresses(host: str) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in answers:
        families.setdefault(family, []).append(str(address[0]))
    return max((tuple(dict.fromkeys(found)) for found in families.values()), key=len, default=())


def _name_in(url: str | None) -> str:
    """The host of a URL where it is a name; empty where there is none, or one that is not known here."""
    if url is None or "${" in url:
        return ""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return ""

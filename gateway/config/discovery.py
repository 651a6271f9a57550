"""Targets that are found by a name: each of its addresses is a server, and a target of its own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace

from gateway.config.connections import TLSSpec
from gateway.config.limits import Part
from gateway.config.located import Document

if TYPE_CHECKING:
    from gateway.config.table import Place, Table, TargetSpec

AT: Final = "@"
"""Between the name of a target in the table and the address of one that it has become."""
_DNS: Final = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?):([0-9]{1,5})")
_Spec = TypeVar("_Spec", bound="TargetSpec")


class DiscoverSpec(Part, frozen=True, kw_only=True):
    """Where servers are found that are targets of their own, called NAME@ADDRESS."""

    dns: str
    """`host:port`: each address of the name is a server; with `tls` they are asked by https, else by http."""

    @property
    def host(self) -> str:
        return self.dns.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.dns.rpartition(":")[2])


def first_url(target: TargetSpec) -> str | None:
    """A target's URL as far as the table knows it: that of its name, where its servers are yet to be found."""
    return target.url if target.discover is None else _url(target, target.discover.host)


def discovered(table: Table) -> tuple[DiscoverSpec, ...]:
    """What is to be looked up, each once."""
    found = (target.discover for _, _, target in table.targets() if target.discover is not None)
    return tuple(dict.fromkeys(found))


def expanded(table: Table, known: Mapping[str, Sequence[str]]) -> Table:
    """The table with a target for each address in the place of those that are discovered.

    `known` has the addresses of each `dns`. Where it has none, there is one target, at the name itself: it is down, and
    the route is there.
    """
    if not discovered(table):
        return table
    routes = {
        name: replace(
            route,
            targets=tuple(_all(route.targets, known)),
            fallback=tuple(_all(route.fallback, known)),
        )
        for name, route in table.routes.items()
    }
    return replace(table, routes=routes)


def reported(table: Table, names: Iterable[str]) -> dict[str, list[str]]:
    """The addresses of each `dns` that names of targets tell, as gateways report them."""
    of = {target.name: target.discover.dns for _, _, target in table.targets() if target.discover is not None}
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        parent, at, address = name.rpartition(AT)
        if at and parent in of and address not in (known := found.setdefault(of[parent], [])):
            known.append(address)
    return found


def check_discovery(document: Document, targets: Iterable[tuple[Place, TargetSpec]]) -> None:
    """Report every mistake in how targets are found."""
    found = list(targets)
    parents = [target.name for _, target in found if target.discover is not None]
    for path, target in found:
        parent, at, _ = target.name.rpartition(AT)
        if at and parent in parents:
            told = f"target name {target.name!r}: names that begin with '{parent}{AT}' are those of its addresses"
            document.report((*path, "name"), told)
        if target.discover is None:
            continue
        if not document.broken(*path, "discover") and "${" not in target.discover.dns:
            _check_dns(document, (*path, "discover", "dns"), target.discover.dns)
        if path[2] == "shadow":
            document.report((*path, "discover"), "a shadow is one server: it needs 'url'")
        if target.canary is not None:
            told = f"target {target.name!r}: 'canary' is a part for one server, and 'discover' finds many"
            document.report((*path, "canary"), told)


def _check_dns(document: Document, place: Place, dns: str) -> None:
    shape = _DNS.fullmatch(dns)
    if shape is None or not 0 < int(shape[2]) < 65536:
        document.report(place, f"{dns!r}: expected a name and a port, such as vllm-headless.models.svc:8000")
        return
    try:
        ipaddress.ip_address(shape[1])
    except ValueError:
        return
    document.report(place, f"{dns!r} is one address: write it as 'url'")


def _all(targets: Iterable[_Spec], known: Mapping[str, Sequence[str]]) -> Iterator[_Spec]:
    for target in targets:
        if target.discover is None:
            yield target
        elif addresses := known.get(target.discover.dns, ()):
            for address in addresses:
                name = f"{target.name}{AT}{address}"
                yield replace(target, name=name, url=_url(target, address), tls=_tls(target), discover=None)
        else:
            yield replace(target, url=first_url(target), discover=None)


def _url(target: TargetSpec, host: str) -> str:
    assert target.discover is not None
    scheme, shown = "http" if target.tls is None else "https", f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{target.discover.dns.rpartition(':')[2]}"


def _tls(target: TargetSpec) -> TLSSpec | None:
    """Certificates are for names, and not for addresses that come and go."""
    if target.tls is None or target.tls.server_name is not None or target.discover is None:
        return target.tls
    return replace(target.tls, server_name=target.discover.host)

"""How targets are reached: TLS, proxies, headers of the operator's; and what of it no type can say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.config.limits import Part
from gateway.config.located import Document
from gateway.config.units import Text

if TYPE_CHECKING:
    import ssl

    from gateway.config.table import Place, RouteSpec, TargetSpec

ENVIRONMENT: Final = "env"
"""As a proxy: the one that the environment names."""
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "expect", "keep-alive", "te", "trailer"}
    | {"proxy-authorization", "proxy-connection", "transfer-encoding", "upgrade"}
    | {"x-request-id", "traceparent", "tracestate"}
)
"""Headers that are the gateway's to set."""
CALLERS: Final = frozenset({"api-key", "authorization", "cookie", "host", "x-api-key"})
"""Headers of a call that are for the gateway alone, or for nobody."""
_PASSED: Final = ("forward_headers", "session_headers")
"""Where a route names headers of calls that go on to its targets."""


class TLSSpec(Part, frozen=True, kw_only=True):
    """TLS towards an `https://` target. Files are read again when they have changed."""

    ca: Text | None = None
    """File with the certificates that are trusted, in PEM; default: those of `SSL_CERT_FILE`, else the system's."""
    cert: Text | None = None
    """File with the gateway's own certificate and those that lead to its root, in PEM, for targets that want one."""
    key: Text | None = None
    """File with its private key, not encrypted; default: it is in `cert`."""
    server_name: Text | None = None
    """The name that the target's certificate must be for; default: the host of `url`."""
    verify: bool = True
    """Whether the target's certificate is checked; without that anybody between may read and change calls."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it is made from."""
        return tuple(file for file in (self.ca, self.cert, self.key) if file is not None)

    def context(self) -> ssl.SSLContext:
        """A context as it says. Raises `OSError` (`ssl.SSLError` is one) when a file cannot be used."""
        import ssl  # most of the main process's memory, which needs it for nothing else

        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(["http/1.1"])
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key, password=lambda: "")  # else it would ask on the terminal
        return context


def check_connections(document: Document, targets: Iterable[tuple[Place, RouteSpec, TargetSpec]]) -> None:
    """Report every mistake in how targets are reached."""
    routes: set[str] = set()
    for path, route, target in targets:
        if (name := str(path[1])) not in routes:
            routes.add(name)
            _check_route(document, name, route)
        _check_tls(document, path, target)
        _check_proxy(document, (*path, "proxy"), target.proxy)
        for key, told in _bad_headers(target.headers, OWN):
            document.report((*path, "headers", key), f"target {target.name!r}: {told}")
        if target.api_key is not None and any(key.lower() == "authorization" for key in target.headers):
            document.report((*path, "headers"), f"target {target.name!r}: 'api_key' already sets 'authorization'")
        own = {key.lower() for key in target.headers}
        for which in _PASSED:
            for key in sorted(own.intersection(map(str.lower, getattr(route, which)))):
                told = f"target {target.name!r}: {key!r} is among the route's {which!r}, too"
                document.report((*path, "headers"), told)


def is_base_url(url: str) -> bool:
    """Whether a target can be reached at it."""
    try:
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username) and all(" " < char < "\x7f" for char in url)
        if parts.scheme == "unix":
            return not parts.netloc and parts.path.startswith("/") and parts.path != "/" and plain
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and plain
    except ValueError:
        return False


def _check_route(document: Document, name: str, route: RouteSpec) -> None:
    _check_proxy(document, ("routes", name, "proxy"), route.proxy)
    for which in _PASSED:
        given = getattr(route, which)
        for index, (key, told) in enumerate(_bad_headers(dict.fromkeys(given, ""), OWN | CALLERS)):
            place = given.index(key) if key in given else index
            document.report(("routes", name, which, place), f"route {name!r}: {told}")


def _check_tls(document: Document, path: Place, target: TargetSpec) -> None:
    tls, place = target.tls, (*path, "tls")
    if tls is None:
        return
    if target.url is not None and urlsplit(target.url).scheme != "https" and "${" not in target.url:
        document.report(place, f"target {target.name!r} has 'tls', but its URL does not begin with 'https://'")
    elif target.launch is not None:
        document.report(place, f"target {target.name!r} is launched, and reached without TLS")
    if tls.key is not None and tls.cert is None and not document.broken(*place):
        document.report((*place, "key"), "'key' needs 'cert', the certificate that it belongs to")
        return
    if not tls.verify:
        told = (
            f"target {target.name!r}: with 'verify: false' anybody between can read and change calls; set 'ca' instead"
        )
        document.report((*place, "verify"), told, warning=True)
    if any("${" in file for file in tls.files):
        return
    try:
        tls.context()
    except OSError as error:
        told = f"target {target.name!r}: {', '.join(tls.files)} cannot be used: {error.strerror or error}"
        document.report(place, f"{told}; it is needed to serve", needed=True)


def _check_proxy(document: Document, path: Place, proxy: str | None) -> None:
    if proxy is None or proxy == ENVIRONMENT or "${" in proxy:
        return
    try:
        parts = urlsplit(proxy)
        well = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and not parts.path.strip("/")
    except ValueError:
        well = False
    if not well:
        shown = proxy.rpartition("@")[2]  # what is before may be a password
        document.report(path, f"{shown!r} is no proxy; write a URL such as 'http://proxy:3128', or 'env'")
    elif parts.password and not document.refers(path):
        document.report(path, "a secret must not stand in the table; write ${NAME} or ${file:/path} for the URL")


def _bad_headers(headers: Mapping[str, str], taken: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Names that cannot be used, or whose values cannot, each with what is wrong."""
    seen: set[str] = set()
    for key, value in headers.items():
        if not TOKEN.fullmatch(key):
            yield key, f"{key!r} is no name of a header"
        elif key.lower() in taken:
            yield key, f"the header {key!r} is not for the table to set"
        elif key.lower() in seen:
            yield key, f"the header {key!r} is given twice"
        elif not value.isascii() or not (value.isprintable() or not value):
            yield key, f"the value of header {key!r} must be printable ASCII"
        seen.add(key.lower())

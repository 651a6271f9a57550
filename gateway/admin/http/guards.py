"""Who may come in to the admin interface, and what its handlers work with."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler

from gateway.admin import Registrar
from gateway.admin.standing import Holding
from gateway.admin.targets import Listed
from gateway.auth import AdminKeys, Network
from gateway.auth.admin_keys import BOOTSTRAP
from gateway.core.clock import Clock
from gateway.core.errors import BadRequest, Conflicting, NotFound, StoreUnavailable, Unauthenticated
from gateway.core.types import AdminKey
from gateway.http.operations import name_request, render_exception
from gateway.http.request import source_of
from gateway.store import Conflict, Store, StoreDown

_WANTED = "an admin key as 'Authorization: Bearer tladm_...'; a one-time token makes the first admin key, no more"
NOTHING_HELD = Holding()
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class AdminContext:
    """What the handlers share; no Struct, which Litestar would check field by field for each call.

    `routes` are the names of the table's routes: limits on others would never hold. `targets` are those of the table,
    by name. `proxies` are networks whose `X-Forwarded-For` is believed. `holding` has the table's limits.
    """

    def __init__(
        self,
        store: Store,
        peppers: Mapping[int, bytes],
        clock: Clock,
        routes: Iterable[str],
        proxies: tuple[Network, ...] = (),
        targets: Mapping[str, Listed] | None = None,
        holding: Holding = NOTHING_HELD,
    ) -> None:
        self.store, self.clock, self.proxies = store, clock, proxies
        self._peppers = peppers
        self.replace(routes, targets or {}, holding)

    def replace(self, routes: Iterable[str], targets: Mapping[str, Listed], holding: Holding) -> None:
        """Go by another table from the next call on."""
        self.routes, self.targets, self.holding = frozenset(routes), dict(targets), holding

    def registrar(self, request: Request[Any, Any, Any]) -> Registrar:
        """The registrar whose audit entries name the caller."""
        admin = caller(request)
        actor = admin.id if admin is BOOTSTRAP else f"admin:{admin.id}"
        return Registrar(self.store.records, self._peppers, self.clock, actor)


def guard(
    keys: AdminKeys, proxies: tuple[Network, ...]
) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """Lets admin keys in, and one-time tokens where the handler's `opt` says `once`."""

    async def enter(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        scope = connection.scope
        admin = await keys.authenticate(dict(scope["headers"]), source_of(scope["client"], scope["headers"], proxies))
        if admin.once and not handler.opt.get("once"):
            raise Unauthenticated
        connection.state.admin = admin

    return enter


def caller(request: Request[Any, Any, Any]) -> AdminKey:
    """The admin key that the guard let in."""
    admin: AdminKey = request.state.admin
    return admin


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what changing `what` can raise into answers."""
    try:
        yield
    except KeyError:
        raise NotFound(f"There is no {what} of this id.") from None
    except Conflict:
        raise Conflicting(f"The {what} was changed by somebody else; read it again.", param="version") from None
    except ValueError as error:
        raise BadRequest(str(error)) from None


def refuse(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever a handler raised, in the data plane's envelope, with the name of the field that is wrong."""
    if isinstance(error, ValidationException):
        error = _mistake(error)
    elif isinstance(error, StoreDown):
        error = StoreUnavailable("The key store cannot be asked at the moment; try again.", retry_after=1)
    elif isinstance(error, Unauthenticated):
        error = Unauthenticated(_WANTED)  # one text for all that is wrong, and for the right kind of key
    return render_exception(request, error)


def finish(response: Response[Any]) -> Response[Any]:
    """Give an answer its request id; what it says, perhaps a secret, is for nobody's cache."""
    response.headers.setdefault("cache-control", "no-store")
    return name_request(response)


async def read_strictly(request: Request[Any, Any, Any]) -> None:
    """Refuse a body that only means well: Litestar itself would take "5" for 5, and "null" for null."""
    parameter = request.route_handler.parsed_fn_signature.parameters.get("data")
    body = await request.body()
    if parameter is not None and body:
        try:
            msgspec.json.decode(body, type=parameter.annotation)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            what, _, where = str(error).partition(" - at ")
            raise _wrong(where.strip("`").removeprefix("$").lstrip("."), what) from None


def _mistake(error: ValidationException) -> BadRequest:
    """What Litestar found wrong with the parameters of a query, or with a body that is missing."""
    found = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    field, message = str(found.get("key", "")).rstrip("_"), str(found.get("message", error.detail))
    return BadRequest("A body is needed: a JSON object.") if field == "data" else _wrong(field, message)


def _wrong(field: str, message: str) -> BadRequest:
    if unknown := _UNKNOWN.fullmatch(message):
        field, message = f"{field}.{unknown[1]}".lstrip("."), "there is no such field"
    return BadRequest(f"{field}: {message}." if field else f"{message}.", param=field or None)

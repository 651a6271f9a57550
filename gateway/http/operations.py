"""What operators, probes and SDKs ask besides inference: models, health, readiness, metrics."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from litestar import MediaType, Request, Response, Router, get, route
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.exceptions import NotFoundException as UnknownPath
from msgspec import Struct

from gateway import __version__
from gateway.auth import Network
from gateway.call_state import Parts
from gateway.core.errors import (
    BadRequest,
    FilesUnavailable,
    GatewayError,
    Internal,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
)
from gateway.core.types import Caller
from gateway.http.errors import render
from gateway.http.request import source_of
from gateway.metering import exposition
from gateway.metering.metrics import CONTENT_TYPE
from gateway.store import Store, StoreDown
from gateway.targets import Target

log = logging.getLogger("trunkline.http")


class Ready(Struct):
    """Whether the gateway can take calls, and what its last probes said of the targets."""

    ready: bool
    store: str
    targets: dict[str, str]
    config: str
    """The hash of the table in force."""
    config_error: str = ""
    """Why a newer table is not."""
    detail: str = ""
    """`draining` once the gateway was told to end."""


class Readiness:
    """Ready once the store has answered anything, until the gateway is told to end.

    An outage of Redis is not ours to spread: calls are served through it.
    """

    def __init__(self, store: Store, draining: Callable[[], bool] = lambda: False) -> None:
        """`draining` says whether the gateway was told to end."""
        self._store, self._draining = store, draining
        self._seen, self._said = False, "unknown"
        self.config, self.config_error = "", ""

    async def look(self, targets: Mapping[str, Target]) -> Ready:
        """The state now, and that of these targets."""
        draining = self._draining()
        if not draining:
            await self._ask()
        words = {None: "unknown", True: "up", False: "down"}
        states = {name: words[target.up] for name, target in targets.items()}
        detail = "draining" if draining else ""
        return Ready(self._seen and not draining, self._said, states, self.config, self.config_error, detail)

    async def _ask(self) -> None:
        try:
            await self._store.ping()
            self._seen, self._said = True, "ok"
        except StoreDown as error:
            self._seen, self._said = self._seen or self._store.has_answered, f"down: {error}"


def router(current: Callable[[], Parts], readiness: Readiness) -> Router:
    """The ordinary handlers, all described in OpenAPI."""

    @route("/", http_method=["GET", "HEAD"], tags=["operations"], summary="What this is")
    async def root() -> dict[str, str]:
        return {"name": "trunkline", "version": __version__, "docs": "/docs"}

    @route("/health", http_method=["GET", "HEAD"], tags=["operations"], summary="The process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @get(
        "/ready",
        tags=["operations"],
        summary="Calls can be taken; 503 until the store has answered once, and while draining",
    )
    async def ready() -> Response[Ready]:
        state = await readiness.look(current().routes.targets)
        return Response(state, status_code=200 if state.ready else 503)

    @get("/metrics", tags=["operations"], summary="Metrics in Prometheus' text format", media_type=MediaType.TEXT)
    async def metrics() -> Response[bytes]:
        return Response(exposition(current().meter.metrics), headers={"content-type": CONTENT_TYPE})

    return Router("/", route_handlers=[root, health, ready, metrics])


def render_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Whatever an ordinary handler raised, in the same envelope as the data plane's errors."""
    return _response(_ours(request, error))


def _response(error: GatewayError) -> Response[bytes]:
    status, headers, body = render(error, f"tl-{secrets.token_hex(8)}")
    shown: Mapping[str, str] = {name.decode(): value.decode() for name, value in headers if name != b"content-length"}
    return Response(body, status_code=status, headers=dict(shown), media_type=MediaType.JSON)


def _ours(request: Request[Any, Any, Any], error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        if isinstance(error, FilesUnavailable):
            log.error("%s %s: %s", request.method, request.url.path, error.why)
        return error
    if isinstance(error, StoreDown):
        return StoreUnavailable("The store cannot be asked at the moment; try again.", retry_after=1)
    if isinstance(error, UnknownPath):
        return NotFound(f"There is nothing at {request.method} {request.url.path[:200]}.")
    if isinstance(error, MethodNotAllowedException):
        return MethodNotAllowed(f"{request.method} is not possible here.")
    if isinstance(error, HTTPException) and error.status_code < 500:
        return BadRequest(str(error.detail))
    log.error("%s %s: a bug of ours", request.method, request.url.path, exc_info=error)
    return Internal()


def name_request(response: Response[Any]) -> Response[Any]:
    """Give the answer of an ordinary handler a request id; the 404 of Litestar's own pages is put into our envelope."""
    if response.status_code == 404 and response.media_type == MediaType.HTML:
        response = _response(NotFound("There is nothing here."))
    response.headers.setdefault("x-request-id", f"tl-{secrets.token_hex(8)}")
    return response


async def caller(parts: Parts, request: Request[Any, Any, Any], proxies: tuple[Network, ...]) -> Caller:
    """Whose list it is; asked of the store, as no admission would notice a change of the key."""
    scope = request.scope
    source = source_of(scope["client"], scope["headers"], proxies)
    return await parts.keyring.authenticate(dict(scope["headers"]), source, fresh=True)

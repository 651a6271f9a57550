"""The data plane's routes: raw ASGI handlers, because a call must be able to end in every way a client can leave."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, get_args

from litestar import asgi
from litestar.handlers import ASGIRouteHandler

from backends.api import Endpoint
from gateway.config.table import Bodies
from gateway.core.errors import GatewayError, Internal, MethodNotAllowed
from gateway.dataplane import Parts, serve
from gateway.edge.client import AsgiClient

log = logging.getLogger("trunkline.edge")

ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)


def handlers(parts: Parts, bodies: Bodies) -> list[ASGIRouteHandler]:
    """One handler for each endpoint."""
    return [_handler(parts, bodies, endpoint) for endpoint in ENDPOINTS]


def _handler(parts: Parts, bodies: Bodies, endpoint: Endpoint) -> ASGIRouteHandler:
    @asgi(f"/v1/{endpoint}", copy_scope=False)
    async def handle(scope: Any, receive: Any, send: Any) -> None:
        client = AsgiClient(scope, receive, send, endpoint, bodies)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} is not possible here; use POST.")
            await serve(parts, endpoint, client)
        except GatewayError as error:
            await client.fail(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not client.gone or task is None:
                raise
            task.uncancel()
        except Exception:
            log.exception("call %s: a bug of ours", client.call_id)
            await client.fail(Internal())
        finally:
            client.close()

    return handle

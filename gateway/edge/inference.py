"""The data plane's routes, raw ASGI: a call must be able to end in every way in which a client can leave."""

from __future__ import annotations

import asyncio
from typing import Any, Final, get_args

from backends.api import Endpoint
from gateway.config.table import Bodies
from gateway.core.errors import GatewayError, Internal, MethodNotAllowed
from gateway.dataplane import Parts, serve
from gateway.edge.client import AsgiClient
from gateway.keys import Network

PATHS: Final[dict[str, Endpoint]] = {f"/v1/{endpoint}": endpoint for endpoint in get_args(Endpoint)}


class DataPlane:
    """The ASGI app: calls of models are served here, all else goes on to `others`.

    It stands before Litestar because Litestar's router and its wrapper around each `send` would be a tenth of what a
    call costs.
    """

    def __init__(self, parts: Parts, bodies: Bodies, others: Any, proxies: tuple[Network, ...] = ()) -> None:
        self._parts, self._bodies, self._others, self._proxies = parts, bodies, others, proxies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = PATHS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._others(scope, receive, send)
            return
        client = AsgiClient(scope, receive, send, endpoint, self._bodies, self._proxies)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} is not possible here; use POST.")
            await serve(self._parts, endpoint, client)
        except GatewayError as error:
            await client.fail(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not client.gone or task is None:
                raise
            task.uncancel()
        except Exception:  # a bug of ours; the record has told the log
            await client.fail(Internal())
        finally:
            client.close()

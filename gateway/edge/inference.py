"""The data plane's routes, raw ASGI: a call must be able to end in every way in which a client can leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args

from backends.api import Endpoint
from gateway.config.table import Bodies
from gateway.core.errors import GatewayError, Internal, MethodNotAllowed, Unauthenticated
from gateway.dataplane import Parts, serve
from gateway.edge.client import AsgiClient
from gateway.keys import Network

PATHS: Final[dict[str, Endpoint]] = {f"/v1/{endpoint}": endpoint for endpoint in get_args(Endpoint)}


EXPLAIN: Final = b"x-trunkline-explain"
"""A header with an admin key: the answer will tell, in the same header, how its target was picked."""


class DataPlane:
    """The ASGI app: calls of models are served here, all else goes on to `others`.

    It stands before Litestar because Litestar's router and its wrapper around each `send` would be a tenth of what a
    call costs.
    """

    def __init__(
        self,
        parts: Parts,
        bodies: Bodies,
        others: Any,
        proxies: tuple[Network, ...] = (),
        explains: Callable[[bytes, str | None], Awaitable[bool]] | None = None,
    ) -> None:
        """`explains` says whether a token, from an address, may see how targets are picked."""
        self.parts, self._bodies = parts, bodies
        self._others, self._proxies, self._explains = others, proxies, explains

    def swap(self, parts: Parts, bodies: Bodies) -> None:
        """Serve calls that come from now on by another table; those under way go on with theirs."""
        self.parts, self._bodies = parts, bodies

    async def _allow_explanation(self, client: AsgiClient, endpoint: Endpoint) -> None:
        """See whether an admin asks. Raises what is wrong with the key, after it was recorded."""
        try:
            if self._explains is None or not await self._explains(client.headers[EXPLAIN], client.source):
                raise Unauthenticated
            client.explains = True
        except Unauthenticated:
            with self.parts.meter.observe(client.call_id, endpoint):
                raise Unauthenticated(f"an admin key as '{EXPLAIN.decode()}: tladm_...', or leave it out") from None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = PATHS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._others(scope, receive, send)
            return
        client = AsgiClient(scope, receive, send, endpoint, self._bodies, self._proxies)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} is not possible here; use POST.")
            if EXPLAIN in client.headers:
                await self._allow_explanation(client, endpoint)
            await serve(self.parts, endpoint, client)
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

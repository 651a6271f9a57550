"""The data plane's paths: a call must be able to end in every way in which a client can leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from backends.endpoints import PATHS, STORED, Endpoint
from gateway.auth import Network
from gateway.call import serve
from gateway.call_state import Parts
from gateway.config.table import Bodies, CorsSpec
from gateway.core.errors import GatewayError, Internal, MethodNotAllowed, Unauthenticated, without_frames
from gateway.http import asgi
from gateway.http.answer import Answer
from gateway.http.bodies import BodyMemory
from gateway.http.client import Client
from gateway.http.connection import Connection
from gateway.http.cors import Cors
from gateway.http.request import Request
from gateway.http.stored import of_stored
from gateway.stored_call import serve_stored

_TARGETS: Final = {path.encode(): endpoint for path, endpoint in PATHS.items()}
"""Nearly all requests name one of these as it is."""

EXPLAIN: Final = b"x-trunkline-explain"
"""A header with an admin key: the answer will tell, in the same header, how its target was picked."""


class DataPlane:
    """Serves calls of models; all else goes on to `others`, an ASGI app."""

    def __init__(
        self,
        parts: Parts,
        bodies: Bodies,
        others: Any,
        proxies: tuple[Network, ...] = (),
        explains: Callable[[bytes, str | None], Awaitable[bool]] | None = None,
    ) -> None:
        """`explains` says whether a token, from an address, may see how targets are picked."""
        self.parts, self.bodies = parts, bodies
        self.cors: Cors | None = None
        """What browsers are told; None: nothing."""
        self._others, self._proxies, self._explains = others, proxies, explains
        self._calls: set[Client] = set()
        self._memory = BodyMemory()
        self.draining = False
        """The gateway is about to end: answers ask their clients to go elsewhere next time."""

    def swap(self, parts: Parts, bodies: Bodies, cors: CorsSpec | None = None) -> None:
        """Serve calls that come from now on by another table; those under way go on with theirs."""
        self.parts, self.bodies = parts, bodies
        self.allow(cors)

    def allow(self, cors: CorsSpec | None) -> None:
        """Let pages of these origins call from browsers; None: of no other."""
        self.cors = None if cors is None else Cors(cors)

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._calls)

    def drain(self) -> None:
        """From now on every answer that begins also ends its connection, so that the client takes another gateway."""
        self.draining = True
        for client in self._calls:
            client.drain()

    def end_calls(self) -> None:
        """End every call with `ShuttingDown`."""
        for client in self._calls:
            client.end()

    async def serve(self, connection: Connection, request: Request, answer: Answer) -> None:
        """Answer one request."""
        answer.closes = self.draining
        if self.cors is not None and self.cors.allow(request, answer):
            return
        endpoint = _TARGETS.get(request.target) or PATHS.get(request.path) or self.parts.routes.passes.get(request.path)
        endpoint = endpoint or of_stored(request)
        if endpoint is None or (endpoint == "generate/root" and request.method != "POST"):
            await asgi.serve(self._others, connection, request, answer)
            return
        client = Client(connection, request, answer, endpoint, self.bodies, self._proxies, self._memory)
        self._calls.add(client)
        try:
            if (
                request.method != "POST"
                and endpoint != STORED
                and not (endpoint == "passed" and request.method == "GET")
            ):
                raise MethodNotAllowed(f"{request.method} is not possible here; use POST.")
            if EXPLAIN in client.headers:
                await self._allow_explanation(client, endpoint)
            await (serve_stored if endpoint == STORED else serve)(self.parts, endpoint, client)
        except GatewayError as error:
            client.fail(without_frames(error))
        except asyncio.CancelledError:
            if not client.cancelled():
                raise
        except Exception:  # a bug of ours; the record has told the log
            client.fail(Internal())
        finally:
            self._calls.discard(client)
            if client.pinging is not None:
                client.stop_pinging()

    async def _allow_explanation(self, client: Client, endpoint: Endpoint) -> None:
        """See whether an admin asks. Raises what is wrong with the key, after it was recorded."""
        try:
            if self._explains is None or not await self._explains(client.headers[EXPLAIN], client.source):
                raise Unauthenticated
            client.explains = True
        except Unauthenticated:
            error = Unauthenticated(f"an admin key as '{EXPLAIN.decode()}: tladm_...', or leave it out")
            self.parts.meter.refused(client.call_id, endpoint, error)
            raise error from None

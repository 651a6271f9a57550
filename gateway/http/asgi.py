"""ASGI apps behind our connections: what is no call (health, metrics, documentation, administration) is Litestar's."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gateway.core.errors import BodyTimeout
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request

BODY_SECONDS: Final = 10.0
"""A body of which nothing comes for so long is not coming."""
UNREAD_SECONDS: Final = 60.0
"""For a client to take a piece of the answer."""


async def serve(app: Any, connection: Connection, request: Request, answer: Answer) -> None:
    """Have an ASGI app answer the request."""
    exchange = _Exchange(connection, request, answer)
    connection.on_lost = exchange.lost
    await app(_scope(connection, request), exchange.receive, exchange.send)


def _scope(connection: Connection, request: Request) -> dict[str, Any]:
    bound = connection.transport.get_extra_info("sockname")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.target.partition(b"?")[0],
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": connection.peer,
        "server": bound[:2] if isinstance(bound, tuple) else (bound, None),
        "state": {},
    }


class _Exchange:
    """What an ASGI app is given to speak with the client."""

    def __init__(self, connection: Connection, request: Request, answer: Answer) -> None:
        self._connection, self._request, self._answer = connection, request, answer
        self._was_read = False
        self._lost: asyncio.Future[None] = connection.loop.create_future()

    def lost(self) -> None:
        """The client has left."""
        if not self._lost.done():
            self._lost.set_result(None)

    async def receive(self) -> dict[str, Any]:
        """A piece of the body; when all was read, word that the client has left. Raises `BodyTimeout`, `BadFraming`."""
        if self._was_read:
            await asyncio.shield(self._lost)
            return {"type": "http.disconnect"}
        try:
            data = await self._connection.more(BODY_SECONDS)
        except TimeoutError:
            raise BodyTimeout(f"Nothing of the body arrived for {BODY_SECONDS:g} s.") from None
        except ConnectionResetError:
            self._was_read = True
            return {"type": "http.disconnect"}
        self._was_read = self._request.is_whole
        return {"type": "http.request", "body": data, "more_body": not self._was_read}

    async def send(self, message: dict[str, Any]) -> None:
        """The head, or a piece of the body."""
        if message["type"] == "http.response.start":
            self._answer.start(message["status"], [(name.lower(), value) for name, value in message.get("headers", ())])
        elif message["type"] == "http.response.body":
            data = message.get("body", b"")
            if message.get("more_body", False):
                self._answer.write(data)
                await self._connection.drained(UNREAD_SECONDS)
            else:
                self._answer.end(data)
                self.lost()  # who listens for the client to leave learns that the exchange is over

"""The rest of a form that is sent on while it comes: a recording is never held as a whole."""

from __future__ import annotations

from typing import Final

from backends.body import Malformed
from backends.form import FormReader
from gateway.config.table import Bodies
from gateway.core.errors import BadRequest, BodyTimeout, BodyTooLarge
from gateway.http.connection import Connection
from gateway.http.request import Request

PIECE_SECONDS: Final = 10.0
"""A body of which nothing comes for so long is not coming."""


class Rest:
    """What is still to come of a form, as far as `reader` has read it, of which `size` bytes have come."""

    def __init__(
        self, connection: Connection, request: Request, bodies: Bodies, reader: FormReader, size: int, announced: int
    ) -> None:
        """`announced`: the bytes of all of it; 0: it comes in chunks, and nobody knows."""
        self._connection, self._request, self._bodies = connection, request, bodies
        self._reader, self._size = reader, size
        self.length = announced - size if announced else None
        """Bytes that are still to come; None: nobody knows."""
        self.begun = False
        """Some of it has been given away."""
        self._due = 0.0

    @property
    def streams(self) -> bool:
        """The form asks for a stream, as far as it has been read."""
        return bytes(self._reader.fields.get("stream", b"")) == b"true"

    async def next(self) -> bytes:
        """The next piece; empty: that was all of it, and it was a whole form.

        Raises `BodyTimeout`, `BodyTooLarge`, `BadFraming`, and `BadRequest` for what is no form.
        """
        loop, bodies = self._connection.loop, self._bodies
        if not self.begun:
            self.begun, self._due = True, loop.time() + bodies.timeout
        patience = min(PIECE_SECONDS, bodies.timeout, self._due - loop.time())
        try:
            piece = await self._connection.more(patience)
        except TimeoutError:
            raise late(bodies) from None
        self._size += len(piece)
        if self._size > bodies.request:
            raise too_large(bodies.request)
        try:
            self._reader.feed(piece)
            if self._request.is_whole:
                self._reader.end()  # before its last piece is given away
        except Malformed as error:
            raise BadRequest(f"{error}", param=error.param) from None
        return piece


def late(bodies: Bodies) -> BodyTimeout:
    """A body that does not come in time."""
    patience = min(PIECE_SECONDS, bodies.timeout)
    return BodyTimeout(f"The body did not arrive within {bodies.timeout:g} s, or nothing of it for {patience:g} s.")


def too_large(limit: int) -> BodyTooLarge:
    """A body that is larger than is taken."""
    return BodyTooLarge(f"The body is larger than the limit of {limit} bytes.")

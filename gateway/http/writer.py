"""The way out to one client: in small pieces, each of which must be taken in time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gateway.core.errors import ReaderTooSlow
from gateway.http.tcp_reset import ends_of, reset_soon

Send = Callable[[Any], Awaitable[None]]
Ending = Callable[[], Awaitable[None]]

PIECE_BYTES: Final = 8 * 1024
"""The most that is sent at once: the server's queue has room for some pieces, however large they are."""
AT_ONCE_BYTES: Final = 64 * 1024
"""A whole answer up to this size is left to the server, read or not."""
WHOLE_BYTES_PER_SECOND: Final = 32 * 1024
"""A larger one must be read at this rate, or it would keep its memory for as long as its reader likes."""


class Writer:
    """Sends an answer. A client that leaves a piece untaken for `seconds` has its connection reset."""

    __slots__ = ("_by", "_scope", "_seconds", "_send", "_since", "_task", "_timer", "_too_slow", "ended")

    def __init__(self, scope: Any, send: Send, seconds: float) -> None:
        self._scope, self._send, self._seconds = scope, send, seconds
        self.ended = False
        """Nothing more can be sent: its end was sent, or is being sent, or the client was cut off."""
        self._too_slow = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = math.inf
        """When the piece at hand began to wait."""
        self._by = math.inf
        """When the whole answer must have been taken."""

    async def send(self, data: bytes) -> None:
        """Send a part of the body. Raises `ReaderTooSlow`."""
        if self._timer is None:
            self._watch(None)
        while len(data) > PIECE_BYTES:
            await self._put(data[:PIECE_BYTES], more=True)
            data = data[PIECE_BYTES:]
        self._since = time.monotonic()  # as `_put`: most parts are one piece
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except asyncio.CancelledError:
            self._blame_the_reader()
            raise
        finally:
            self._since = math.inf

    async def finish(self, data: bytes, ending: Ending | None = None) -> None:
        """Send the end of the body, or all of it. Raises `ReaderTooSlow`.

        `ending` is waited for just before the last piece: a client that has all of its answer finds it done, one that
        reads a large answer slowly does not.
        """
        if self._timer is None and len(data) > AT_ONCE_BYTES:
            self._watch(len(data))
        if self._timer is not None:
            while len(data) > PIECE_BYTES:
                await self._put(data[:PIECE_BYTES], more=True)
                data = data[PIECE_BYTES:]
        if ending is not None:
            await ending()
        self.ended = True  # from here on a server may tell of a client that it has left
        await self._put(data, more=False)

    def close(self) -> None:
        """Send nothing more, and let go of the server: it ends the exchange when nobody knows it any more."""
        self.ended, self._send = True, nowhere
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._task = None

    async def _put(self, piece: bytes, *, more: bool) -> None:
        self._since = time.monotonic()
        try:
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        except asyncio.CancelledError:
            self._blame_the_reader()
            raise
        finally:
            self._since = math.inf

    def _blame_the_reader(self) -> None:
        """Raise `ReaderTooSlow` if it was us who cancelled the call, because a piece was left untaken."""
        if self._too_slow and self._task is not None:
            self._task.uncancel()
            raise ReaderTooSlow from None

    def _watch(self, whole: int | None) -> None:
        self._task = asyncio.current_task()
        if whole is not None:
            self._by = time.monotonic() + self._seconds + whole / WHOLE_BYTES_PER_SECOND
        self._look_in(self._seconds)

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Cheaper than a timer for each piece: one that looks again when the piece at hand would be late."""
        now = time.monotonic()
        waits = self._since != math.inf
        due = min(self._since + self._seconds, self._by) if waits else now + self._seconds
        if now < due or self._task is None:
            self._look_in(due - now)
            return
        self._too_slow = self.ended = True
        self._task.cancel()
        if (ends := ends_of(self._scope)) is not None:
            reset_soon(ends)


async def nowhere(_: Any) -> None:
    """Where a closed writer sends to."""

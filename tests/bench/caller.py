"""An asyncio connection that makes one call after the other and looks at each answer."""

from __future__ import annotations

import asyncio
import re
from typing import cast

from calls import EVENTS, Call

LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
LAST_CHUNK = b"\r\n0\r\n\r\n"


def fault_of(reply: bytes, call: Call) -> str | None:
    """Why this complete reply is not the answer that was asked for."""
    if not reply.startswith(b"HTTP/1.1 200 "):
        return reply[:300].decode(errors="replace")
    if not call.streams:
        return None if b'"usage"' in reply else f"no usage in the reply: {reply[-200:]!r}"
    if b"data: [DONE]" not in reply[-64:] or reply.count(b"data: ") < EVENTS:
        return f"the stream is not whole: {reply[-200:]!r}"
    return None


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one call on it."""

    def __init__(self) -> None:
        self.is_open = False
        self.reply = bytearray()
        """The last answer, head and body."""
        self._transport: asyncio.Transport
        self._ends_at = 0
        self._finished: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._finished is not None and not self._finished.done():
            self._finished.set_exception(ConnectionError(f"closed after {bytes(self.reply[:200])!r}"))

    def data_received(self, data: bytes) -> None:
        self.reply += data
        if self._finished is not None and not self._finished.done() and self._is_complete():
            self._finished.set_result(bytes(self.reply))

    def _is_complete(self) -> bool:
        if not self._ends_at and (head_end := self.reply.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self.reply, 0, head_end)
            self._ends_at = head_end + 4 + int(length[1]) if length else -1
        if self._ends_at < 0:
            return self.reply.endswith(LAST_CHUNK)
        return 0 < self._ends_at <= len(self.reply)

    async def ask(self, call: Call, secret: str) -> str | None:
        """Send the call, read the whole reply, and say what is wrong with it."""
        self.reply.clear()
        self._ends_at = 0
        self._finished = asyncio.get_running_loop().create_future()
        self._transport.write(call.request(secret))
        try:
            return fault_of(await self._finished, call)
        except ConnectionError as error:
            return str(error)

    def close(self) -> None:
        if self.is_open:
            self._transport.close()

"""One call at one target: the request out, its good answer in, piece by piece."""

from __future__ import annotations

import asyncio
from typing import Final

from backends.api import Chunk
from gateway.core.errors import AnswerMemoryFull, BadReply, Rejected, TookTooLong, UpstreamError, UpstreamTimeout
from gateway.upstream.connection import Response
from gateway.upstream.failures import conceal
from gateway.upstream.reading import AnswerReader

TAIL_SECONDS: Final = 0.2
"""After its terminator a stream has nothing left but the end of the HTTP message."""
MOST_HELD: Final = 1024 * 1024
"""Bytes of comments and openings that wait for an answer's first output."""
LATE: Final = "no answer, or no next piece of it, in time"


def late(*, whole: bool) -> UpstreamTimeout:
    """A target that was waited for; `whole`: for as long as an answer that is no stream may take."""
    return TookTooLong("the answer was not whole in time") if whole else UpstreamTimeout(LATE)


class Exchange:
    """A target's good answer. It ends with `close`, whatever came of it."""

    __slots__ = (
        "_alive",
        "_begun",
        "_came_at",
        "_due",
        "_idle",
        "_loop",
        "_reader",
        "_response",
        "_secret",
        "content_type",
        "kept",
    )

    def __init__(
        self, response: Response, reader: AnswerReader, content_type: str, due: float, idle: float, secret: str | None
    ) -> None:
        """The first output must come until `due`, in the loop's time; of a whole answer that is all of it. No piece may
        come later than `idle` seconds after the one before. `secret` is our credential for the target, which no refusal
        of its may quote."""
        self.content_type = b"content-type", content_type.encode()
        self._response, self._reader, self._due, self._idle = response, reader, due, idle
        self._secret = secret
        self._loop = asyncio.get_running_loop()
        self._came_at = 0.0
        """When the last piece came; 0: none has. A client that takes its time with it is not the target's fault."""
        self._begun = False
        """The first output has come."""
        self.kept = 0
        """Bytes of what came that wait for the first output, as far as they were counted."""
        self._alive = True
        """It was more than comments and roles, which a server may send while its engine hangs."""

    async def next(self) -> Chunk:
        """The next piece of the answer; the last one is `done`. Raises `UpstreamError`, `Rejected`."""
        reader, response = self._reader, self._response
        broken: UpstreamError | None = None
        while reader.failure is None:
            try:
                if self._begun:
                    now = self._loop.time()
                    self._due = now + self._idle if self._alive else self._due + now - self._came_at
                    response.limit = self._due
                elif self._came_at and (now := self._loop.time()) >= self._due:  # whatever comes, and however fast
                    response.limit = self._due
                    raise TimeoutError
                elif self._came_at and reader.whole:
                    response.limit = min(self._due, now + self._idle)
                data = b"" if response.complete and not response.pieces else await response.read()
            except TimeoutError:  # the reader may hold back the end of an answer, which the client is to get
                data, broken = b"", late(whole=reader.whole and response.limit == self._due)
            except UpstreamError as error:
                data, broken = b"", error
            self._came_at, self._alive = self._loop.time(), True
            chunk = reader.feed(data) if data else reader.end(broken)
            if chunk is not None:
                self._alive = not (chunk.comment or chunk.opening)
                if self._alive:
                    self._begun, response.heard_at = True, self._came_at
                return chunk
        if isinstance(reader.failure, Rejected):
            conceal(reader.failure, self._secret)
        raise reader.failure

    def keep(self, size: int) -> None:
        """Count so many bytes as waiting for the first output, in the memory of answers.

        Raises `BadReply` for more than `MOST_HELD`, and `AnswerMemoryFull`.
        """
        if size > MOST_HELD:
            raise BadReply(f"more than {MOST_HELD} bytes came before its first output")
        memory, more = self._reader.memory, size - self.kept
        memory.held += more
        self.kept = size
        if more > 0 and memory.held > memory.bound:
            raise AnswerMemoryFull(memory.bound)

    def close(self) -> None:
        """Let go of the connection: it serves again if all of the answer has come, or its end follows at once."""
        if self.kept:
            self.keep(0)
        if self._reader.counted:
            self._reader.count(0)
        if self._begun and (connection := self._response.connection) is not None:
            connection.origin.heard_at = max(connection.origin.heard_at, self._response.heard_at)
        self._response.release(TAIL_SECONDS if self._reader.done else 0.0)

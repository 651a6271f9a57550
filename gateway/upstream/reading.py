"""A target's good answer on its way in: whole, or event by event, checked for how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from typing import Any

import httpx

from backends.api import DONE, AnyAdapter, Call, Chunk, UpstreamFault
from backends.sse import Splitter
from gateway.core.errors import BadReply, Disconnected, GatewayError, UpstreamError
from gateway.upstream.deadline import Deadline
from gateway.upstream.failures import blame, failure

ERROR_BODY_LIMIT = 1024 * 1024
TAIL_SECONDS = 0.2
"""After its terminator a stream has nothing left but the end of the HTTP message."""


class Upstream:
    """A target's good answer, not yet read."""

    def __init__(
        self, call: Call, adapter: AnyAdapter, response: httpx.Response, deadline: Deadline, answer_limit: int
    ) -> None:
        self._call, self._adapter, self._response = call, adapter, response
        self._deadline, self._answer_limit = deadline, answer_limit
        self._alive = True
        """What came last is more than comments, which a server may send while its engine hangs."""
        self._lost = Disconnected("the stream ended before its end was told")
        self.content_type = response.headers.get("content-type", "application/json")

    def chunks(self) -> AsyncIterator[Chunk]:
        """The answer, as it comes: one chunk if it is whole. Raises `UpstreamError`, `Rejected`."""
        return self._events() if self._call.stream else self._whole()

    async def _whole(self) -> AsyncIterator[Chunk]:
        body = await self.read(self._answer_limit)
        try:
            reply = self._adapter.reply(self._call, body)
        except UpstreamFault as fault:
            raise blame(fault) from fault
        except (ValueError, RecursionError) as error:
            raise BadReply(f"answer not understood: {error}") from error
        yield Chunk(reply.body, usage=reply.usage, finished=1, done=True)

    async def _events(self) -> AsyncIterator[Chunk]:
        if not self.content_type.startswith("text/event-stream"):
            await self._refuse_whole()
        opener = getattr(self._adapter, "open", None)  # `Stateful`; asking a Protocol costs 12 us
        reading = Reading(self._call, self._adapter if opener is None else opener(self._call))
        splitter, blocks = Splitter(), self._blocks(cut=True)
        async for block in blocks:
            try:
                events = splitter.feed(block)
            except ValueError as error:
                raise BadReply(str(error)) from error
            for chunk in reading.merged(events):
                self._alive = not chunk.comment
                yield chunk
                if chunk.done:
                    await _drain(blocks)
                    return
        for chunk in reading.merged(splitter.close(), last=True):
            yield chunk
            if chunk.done:
                return
        if reading.finished < self._call.choices or splitter.rest.strip():
            raise self._lost
        yield Chunk(DONE, done=True)  # some servers close instead, and what they had to say is said

    async def _refuse_whole(self) -> None:
        """A stream was asked for and something else came: an error in a 200, or nonsense."""
        body = await self.read(ERROR_BODY_LIMIT)
        try:
            self._adapter.reply(self._call, body)
        except UpstreamFault as fault:
            raise blame(fault) from fault
        except (ValueError, RecursionError):
            pass
        raise BadReply("a stream was asked for, something else came")

    async def read(self, limit: int) -> bytes:
        """The whole body; `BadReply` if it is larger than `limit` bytes."""
        pieces, size = [], 0
        async for piece in self._blocks():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise BadReply(f"the answer is larger than {limit} bytes")
        return b"".join(pieces)

    async def _blocks(self, *, cut: bool = False) -> AsyncIterator[bytes]:
        """The body as it comes; with `cut` a lost connection is its end, too, and `_lost` tells."""
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        blocks = aiter(stream)
        while True:
            try:
                block = await anext(blocks)
            except StopAsyncIteration:
                break
            except httpx.TransportError as error:
                lost = failure(error)
                if cut and isinstance(lost, Disconnected):
                    self._lost = lost
                    break
                raise lost from error
            self._deadline.pause()  # a client that reads slowly is not the target's fault
            self._alive = True
            yield block
            self._deadline.next_piece(alive=self._alive)
        self._deadline.pause()  # nor is one that has all of the answer still to read


async def _drain(blocks: AsyncIterator[bytes]) -> None:
    """Read the end of the message behind the terminator, so that the connection can serve again, if that is quick."""
    with suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(TAIL_SECONDS):
            await anext(blocks, None)


class Reading:
    """The events of one stream, as chunks; knows how many choices have begun, and how many have told why they ended."""

    def __init__(self, call: Call, reader: Any) -> None:
        self._call, self._reader = call, reader
        self._begun = 1
        self.finished = 0

    def merged(self, events: Iterable[bytes], *, last: bool = False) -> Iterator[Chunk]:
        """What came together is one chunk; what came before a failure is yielded before it is raised.

        After the `last` events comes what the reader has held back. Raises `GatewayError`, also for a terminator
        before all that has begun told why it ended: a server that gives up says so in this way, too.
        """
        data: list[bytes] = []
        tokens, usage, finished, choice, done, comment, opening = 0, None, 0, 0, False, True, True
        trouble: GatewayError | None = None
        try:
            for chunk in self._chunks(events, last):
                finished += chunk.finished
                choice = max(choice, chunk.choice)
                if chunk.done and self.finished + finished < max(self._begun, choice + 1):
                    trouble = Disconnected("the stream's terminator came before its answer had ended")
                    break
                data.append(chunk.data)
                tokens += chunk.tokens
                usage = chunk.usage or usage
                comment &= chunk.comment
                opening &= chunk.opening or chunk.comment
                if chunk.done:
                    done = True
                    break
        except UpstreamFault as fault:
            trouble = blame(fault)
            trouble.__cause__ = fault
        except (ValueError, RecursionError) as error:
            trouble = BadReply(f"event not understood: {error}")
            trouble.__cause__ = error
        if trouble is not None:
            for chunk in getattr(self._reader, "close", tuple)():  # the end of the answer may have been held back
                data.append(chunk.data)
                finished += chunk.finished
        self.finished, self._begun = self.finished + finished, max(self._begun, choice + 1)
        if data:
            yield Chunk(b"".join(data), tokens, usage, finished, choice, done, comment, opening)
        if trouble is not None:
            raise trouble

    def _chunks(self, events: Iterable[bytes], last: bool) -> Iterator[Chunk]:
        for event in events:
            if not event.isascii() and event.startswith(b"data:"):  # a comment may hold anything
                event.decode()  # what is skipped in JSON is not looked at
            yield from self._reader.chunk(self._call, event)
        if last:
            yield from getattr(self._reader, "close", tuple)()

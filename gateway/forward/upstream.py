"""A target's good answer on its way in: whole, or event by event, checked for how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import httpx

from backends.api import DONE, AnyAdapter, Call, Chunk, UpstreamFault
from backends.sse import Splitter
from gateway.core.errors import BadReply, Disconnected, GatewayError, UpstreamError
from gateway.forward.deadline import Deadline
from gateway.forward.failures import blame, failure

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
        reader = self._adapter if opener is None else opener(self._call)
        splitter, unfinished = Splitter(), self._call.choices
        blocks, lost = self._blocks(), Disconnected("the stream ended before its end was told")
        try:
            async for block in blocks:
                try:
                    events = splitter.feed(block)
                except ValueError as error:
                    raise BadReply(str(error)) from error
                for chunk in merged(self._call, reader, events):
                    unfinished -= chunk.finished
                    yield chunk
                    if chunk.done:
                        await _drain(blocks)
                        return
        except Disconnected as error:
            lost = error
        rest = merged(self._call, reader, splitter.close())
        for chunk in chain(rest, getattr(reader, "close", tuple)()):
            unfinished -= chunk.finished
            yield chunk
            if chunk.done:
                return
        if unfinished > 0 or splitter.rest.strip():
            raise lost
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

    async def _blocks(self) -> AsyncIterator[bytes]:
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        blocks = aiter(stream)
        while True:
            try:
                block = await anext(blocks)
            except StopAsyncIteration:
                return
            except httpx.TransportError as error:
                raise failure(error) from error
            self._deadline.pause()  # a client that reads slowly is not the target's fault
            yield block
            self._deadline.next_piece()


async def _drain(blocks: AsyncIterator[bytes]) -> None:
    """Read the end of the message behind the terminator, so that the connection can serve again, if that is quick."""
    with suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(TAIL_SECONDS):
            await anext(blocks, None)


def merged(call: Call, reader: Any, events: Iterable[bytes]) -> Iterator[Chunk]:
    """The chunks of events that arrived together, as one; what came before a failure is yielded before it is raised."""
    data: list[bytes] = []
    tokens, usage, finished, done, comment, opening = 0, None, 0, False, True, True
    trouble: GatewayError | None = None
    try:
        for event in events:
            for chunk in reader.chunk(call, event):
                data.append(chunk.data)
                tokens += chunk.tokens
                usage = chunk.usage or usage
                finished += chunk.finished
                done |= chunk.done
                comment &= chunk.comment
                opening &= chunk.opening or chunk.comment
            if done:
                break
    except UpstreamFault as fault:
        trouble = blame(fault)
        trouble.__cause__ = fault
    except (ValueError, RecursionError) as error:
        trouble = BadReply(f"event not understood: {error}")
        trouble.__cause__ = error
    if data:
        yield Chunk(b"".join(data), tokens, usage, finished, done, comment, opening)
    if trouble is not None:
        raise trouble

"""A target's good answer on its way in: whole, or event by event, checked for how it ends.

A reader does no I/O: whoever has the connection feeds it what comes and tells it how the HTTP message ended.
"""

from __future__ import annotations

from typing import Final, Literal, TypeVar

from msgspec import Struct

from backends import sse
from backends.api import DONE, Call, Chunk, UpstreamFault
from backends.capabilities import Capabilities
from gateway.core.errors import AnswerMemoryFull, AnswerTooLarge, BadReply, Disconnected, GatewayError, UpstreamError
from gateway.upstream.failures import blame

ERROR_BODY_LIMIT = 1024 * 1024
UNCOUNTED_BYTES: Final = 64 * 1024
"""What an answer may hold without being counted: the pieces of nearly all streams are far smaller."""


Failure = TypeVar("Failure", bound=GatewayError)


class AnswerLimits(Struct, frozen=True):
    """Bytes that are taken into memory."""

    answer: int
    """Of an answer that is no stream."""
    event: int
    """Of one event of a stream."""
    answers: int = 512 * 1024**2
    """Of all answers and events together that are larger than 64 KiB."""


class AnswerMemory:
    """The bytes of large answers and events that are being collected, those of all calls together."""

    __slots__ = ("bound", "held")

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0


class AnswerReader:
    """Reads one answer as it comes. After a failure, or when it is done, nothing more comes of it."""

    failure: GatewayError | None = None
    """Why the answer is no good one, or not whole; the chunk that was given last holds what came before."""
    done = False
    """The answer is whole; what was given last was the end of it."""
    whole = False
    """The answer is no stream, and was not to be one."""
    counted = 0
    """Bytes that are counted in the memory for it."""
    memory: AnswerMemory
    """Where it counts what it holds."""

    def count(self, size: int) -> bool:
        """Count `size` bytes as what it holds now; False if it holds more than before, and all together too much."""
        memory, more = self.memory, size - self.counted
        memory.held += more
        self.counted = size
        return more <= 0 or memory.held <= memory.bound

    def feed(self, data: bytes) -> Chunk | None:
        """What came in one read, as one chunk; None: there is nothing to pass on yet."""
        raise NotImplementedError

    def end(self, broken: UpstreamError | None) -> Chunk | None:
        """The HTTP message has ended, well or `broken`; what is left of the answer. Sets `failure` or `done`."""
        raise NotImplementedError


def reader_for(
    call: Call,
    capabilities: Capabilities,
    content_type: str,
    limits: AnswerLimits,
    memory: AnswerMemory,
    *,
    lenient: bool = False,
    continuous: bool = False,
) -> AnswerReader:
    """A reader for an answer of status 200. `lenient`: the target's streams may end without telling why; `continuous`:
    they were asked to tell their usage in every event."""
    if not call.stream:
        return WholeReader(call, capabilities, limits.answer, memory)
    if content_type[:17].lower() == "text/event-stream":
        return EventReader(call, capabilities, limits.event, memory, lenient=lenient, continuous=continuous)
    return WholeReader(call, capabilities, ERROR_BODY_LIMIT, memory)  # an error in a 200, or nonsense


class WholeReader(AnswerReader):
    """Collects an answer that is no stream, and gives it as one chunk at its end."""

    def __init__(self, call: Call, capabilities: Capabilities, limit: int, memory: AnswerMemory) -> None:
        self._call, self._capabilities, self._limit, self.memory = call, capabilities, limit, memory
        self.whole = not call.stream
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self._size += len(data)
        if self._size > self._limit:
            self.failure = self._no_stream() if self._call.stream else too_large("answer", self._limit)
        elif self._size > UNCOUNTED_BYTES and not self.count(self._size):
            self.failure = AnswerMemoryFull(self.memory.bound)
        if self.failure is None:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    def end(self, broken: UpstreamError | None) -> Chunk | None:
        self.failure = self.failure or broken
        if self.failure is not None:
            return None
        body = b"".join(self._pieces)
        self._pieces.clear()
        try:
            reply = self._capabilities.adapter.reply(self._call, body)
        except UpstreamFault as fault:
            self.failure = caused(blame(fault), fault)
        except (ValueError, RecursionError) as error:
            self.failure = caused(BadReply(f"answer not understood: {error}"), error)
        else:
            if not self._call.stream:
                self.done = True
                return Chunk(reply.body, usage=reply.usage, finished=1, done=True)
        if self._call.stream and (self.failure is None or isinstance(self.failure, BadReply)):
            self.failure = self._no_stream()
        return None

    def _no_stream(self) -> BadReply:
        return BadReply("a stream was asked for, something else came")


class EventReader(AnswerReader):
    """Reads a stream; knows how many choices have begun, and how many have told why they ended."""

    def __init__(
        self,
        call: Call,
        capabilities: Capabilities,
        limit: int,
        memory: AnswerMemory,
        *,
        lenient: bool = False,
        continuous: bool = False,
    ) -> None:
        reader = capabilities.adapter if capabilities.stateful is None else capabilities.stateful.open(call)
        outer: object = capabilities.adapter
        if continuous and capabilities.continuous is not None and capabilities.continuous is outer:
            # One within another adapter is asked by that, which makes events of its own.
            reader = capabilities.continuous.open_continuous(call)
        self._call, self._limit, self.memory, self._lenient = call, limit, memory, lenient
        self._uncounted = min(limit, UNCOUNTED_BYTES)
        self._chunk = reader.chunk
        self._skim = getattr(reader, "skim", _skims_nothing)
        self._close = getattr(reader, "close", tuple)
        self._terminator = getattr(reader, "terminator", _done)
        self._whole_message = getattr(reader, "whole_message", False)
        self._splitter = sse.Splitter()
        self._begun, self._finished, self._spoke = 1, 0, False

    def feed(self, data: bytes) -> Chunk | None:
        if self.done or self.failure is not None:
            return None
        events, chunks = self._splitter.take(data), list[Chunk]()
        start = count = text = 0
        if len(events) <= self._limit and (events.isascii() or _is_text(events)):
            start, count, text = self._skim(events, 0)
        if count:
            self._spoke = True
            chunks.append(Chunk(events[:start], count, text=text))  # nearly always all of them
        if start < len(events):
            self._take(events, start, chunks)
        held = len(events) + len(self._splitter.rest)
        if held > self._uncounted or self.counted:
            self._weigh(held)
        return chunks[0] if len(chunks) == 1 else merged(chunks)

    def end(self, broken: UpstreamError | None) -> Chunk | None:
        if self.done or self.failure is not None:
            return None
        chunks: list[Chunk] = []
        complete, rest = self._splitter.close(), bytes(self._splitter.rest)
        if complete:
            self._take(complete, 0, chunks)
        if broken is None and rest.strip() and not self._over:
            # The message ended well, so its last event is whole; but clients wait for the empty line behind it.
            last = rest + (b"\n" if rest.endswith(b"\n") else b"\n\n")
            if last.startswith(b":") or sse.data(last):  # else it says nothing, and SDKs cannot read nothing
                self._take(last, 0, chunks)
            if isinstance(self.failure, BadReply):
                self.failure = caused(Disconnected("the stream ended within an event"), self.failure)
            rest = b""
        if not self._over:
            self._take_rest(chunks)
            lost = broken or Disconnected("the stream ended before its end was told")
            cut = broken is not None and self._whole_message
            if cut or not isinstance(lost, Disconnected) or self._finished < self._call.choices or rest.strip():
                self.failure = lost
            else:  # some servers close instead of a terminator, and what they had to say is said
                self.done = True
                chunks.append(self._terminator())
        return chunks[0] if len(chunks) == 1 else merged(chunks)

    @property
    def _over(self) -> bool:
        return self.done or self.failure is not None

    def _weigh(self, held: int) -> None:
        """Count what is held: the events given last, which wait for the client, and what has come of the next one."""
        rest, fits = len(self._splitter.rest), self.count(held if held > UNCOUNTED_BYTES else 0)
        if self._over or rest <= self._uncounted:
            return  # events that have come are passed on
        if rest > self._limit:
            self.failure = too_large("event", self._limit)
        elif not fits:
            self.failure = AnswerMemoryFull(self.memory.bound)

    def _take(self, events: bytes, start: int, chunks: list[Chunk]) -> None:
        """Read whole events, from `start` on; sets `failure` for one that tells of it, and `done` at the terminator."""
        try:
            self._take_each(events, start, chunks)
        except UpstreamFault as fault:
            self.failure = caused(blame(fault), fault)
        except (ValueError, RecursionError) as error:
            self.failure = caused(BadReply(f"event not understood: {error}"), error)
        if self.failure is not None:
            self._take_rest(chunks)  # the end of the answer may have been held back

    def _take_each(self, events: bytes, start: int, chunks: list[Chunk]) -> None:
        text, line_feeds, size = _is_text(events), b"\r" not in events, len(events)
        skim = self._skim if text and size <= self._limit else _skims_nothing
        while start < size:
            end = events.index(b"\n\n", start) + 2 if line_feeds else sse.end_of_event(events, start)
            event = events[start:end]
            if len(event) > self._limit:
                self.failure = too_large("event", self._limit)
                return
            if not text and event.startswith(b"data:"):  # a comment may hold anything
                event.decode()  # what is skipped in JSON is not looked at
            for chunk in self._chunk(self._call, event):
                self._note(chunk, chunks)
                if self._over:
                    return
            start, count, said = skim(events, end)
            if count:
                self._spoke = True
                chunks.append(Chunk(events[end:start], count, text=said))

    def _take_rest(self, chunks: list[Chunk]) -> None:
        """What the adapter's reader has held back until it knows what follows."""
        for chunk in self._close():
            self._note(chunk, chunks)

    def _note(self, chunk: Chunk, chunks: list[Chunk]) -> None:
        if chunk.done and not self._may_end():
            self.failure = Disconnected("the stream's terminator came before its answer had ended")
            return
        self._finished += chunk.finished
        if chunk.choice >= self._begun:
            self._begun = chunk.choice + 1
        self._spoke |= chunk.tokens > 0
        self.done |= chunk.done
        chunks.append(chunk)

    def _may_end(self) -> bool:
        """All that has begun has told why it ended: a server that gives up sends a terminator, too."""
        return self._finished >= self._begun or (self._lenient and self._spoke)


def merged(chunks: list[Chunk]) -> Chunk | None:
    """Chunks that came together, as one; None for none."""
    if not chunks:
        return None
    tokens, text, usage, finished, choice, done, comment, opening = 0, 0, None, 0, 0, False, True, True
    for chunk in chunks:
        tokens += chunk.tokens
        text += chunk.text
        usage = chunk.usage or usage
        finished += chunk.finished
        choice = max(choice, chunk.choice)
        done |= chunk.done
        comment &= chunk.comment
        opening &= chunk.opening or chunk.comment
    data = b"".join([chunk.data for chunk in chunks])
    return Chunk(data, tokens, usage, finished, choice, done, comment, opening, text)


def too_large(what: Literal["answer", "event"], limit: int) -> AnswerTooLarge:
    """Beyond the bound of this name in the table's `bodies`."""
    whole = "The answer" if what == "answer" else "An event of the answer"
    return AnswerTooLarge(f"{whole} is larger than {limit} bytes, the gateway's bound (bodies.{what}).")


def caused(error: Failure, by: Exception) -> Failure:
    """The error, as raised because of another."""
    error.__cause__ = by
    return error


def _done() -> Chunk:
    return Chunk(DONE, done=True)


def _skims_nothing(events: bytes, start: int) -> tuple[int, int, int]:
    return start, 0, 0


def _is_text(events: bytes) -> bool:
    if events.isascii():
        return True
    try:
        events.decode()
    except UnicodeDecodeError:
        return False
    return True

"""An answer as a list of steps: what a well server would send, until a fault spoils it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct, field

if TYPE_CHECKING:
    from gateway.faults.paced import Turn, Wait

DONE: Final = b"data: [DONE]\n\n"
_REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
            429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


class Act(Enum):
    """What a server can do besides sending bytes; each but the last ends the answer."""

    STALL = "stalls"
    CUT = "cut"
    RESET = "reset"
    DIE = "dies"
    NOTHING = "nothing"


class Pause(Struct, frozen=True):
    """So many seconds in which nothing happens."""

    seconds: float


class Token(Struct, frozen=True):
    """Nothing happens until the engine has written so many tokens of a call."""

    turn: Turn
    number: int


class Refuse(Struct, frozen=True):
    """Drop the call and stop listening for so many seconds."""

    seconds: float


Step = bytes | Act | Pause | Token | Refuse


class Answer(Struct):
    """Status, headers and the body as steps: bytes are pieces of the body, of a stream one event each."""

    steps: list[Step]
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("content-type", "application/json")])
    streamed: bool = False
    interval: float = 0.0
    """Seconds before each event of a stream."""
    before: list[Step] = []
    """What comes instead of the head, or ahead of it; bytes go out as they are."""
    length: int | None = None
    """What `content-length` says; None: the truth, and of a stream nothing."""
    closes: bool = False
    """No length and no chunks: the end of the connection ends the body."""
    tokens: int = 0
    """Words it says; a stream that is broken off has said one for each event, as the counters go."""
    turn: Turn | None = None
    """Its call at the engine that sets the pace."""
    quiet: int = 0
    """Events of a stream that come before the one with the first token; they wait for that, too."""
    lonely: float | None = None
    """The connection is closed so many seconds after the answer, without a word that it will be."""

    @property
    def body(self) -> bytes:
        """All bytes of the body."""
        return b"".join(step for step in self.steps if isinstance(step, bytes))

    async def begin(self, turn: Turn, wait: Wait) -> None:
        """Hand the call to the engine; a whole answer is there when its last token is."""
        turn.begin()
        if not self.streamed:
            await turn.until(turn.work.answer, wait)
            size = len(self.body)
            self.steps = [turn.filled(step) if isinstance(step, bytes) else step for step in self.steps]
            if self.length is not None:  # a fault has set it
                self.length += len(self.body) - size

    def stop(self, events: int, act: Step) -> None:
        """Do `act` after so many events; of a whole answer, in its middle."""
        if self.streamed:
            self.steps = [*self.steps[:events], act]
        else:
            body = self.body
            self.length = len(body) if self.length is None else self.length
            self.steps = [body[: len(body) // 2], act]

    def insert(self, events: int, *steps: Step) -> None:
        """Put these after so many events."""
        self.steps[events:events] = steps

    def replace(self, body: bytes, status: int = 200, content_type: str = "application/json") -> None:
        """Another answer, whole, instead."""
        self.steps, self.status, self.streamed, self.length, self.turn = [body], status, False, None, None
        self.headers = [("content-type", content_type)]

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change every JSON object of the body."""
        self.steps = [_edited(step, change) if isinstance(step, bytes) else step for step in self.steps]

    def head(self) -> bytes:
        """The head's bytes."""
        headers = list(self.headers)
        if self.closes:
            headers.append(("connection", "close"))
        elif self.streamed:
            headers.append(("transfer-encoding", "chunked"))
        else:
            length = len(self.body) if self.length is None else self.length
            headers.append(("content-length", str(length)))
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Fake')}"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode("latin-1")

    def framed(self) -> Iterator[Step]:
        """The body's steps, in chunks if that is its coding."""
        events = 0
        for step in self.steps:
            if isinstance(step, bytes):
                if self.turn is not None:
                    yield Token(self.turn, max(1, events + 1 - self.quiet))
                    step = self.turn.filled(step)
                    events += 1
                if self.interval and self.streamed:
                    yield Pause(self.interval)
                yield b"%x\r\n%b\r\n" % (len(step), step) if self._is_chunked and step else step
            else:
                yield step

    @property
    def tail(self) -> bytes:
        """What tells that the body is complete."""
        return b"0\r\n\r\n" if self._is_chunked else b""

    @property
    def _is_chunked(self) -> bool:
        return self.streamed and not self.closes


def event(value: Any) -> bytes:
    """A server-sent event with this JSON."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def stream(events: list[bytes], **headers: str) -> Answer:
    """An answer of server-sent events."""
    return Answer(list(events), headers=[("content-type", "text/event-stream; charset=utf-8"), *headers.items()],
                  streamed=True)  # fmt: skip


def whole(value: Any, status: int = 200, content_type: str = "application/json") -> Answer:
    """An answer in one piece; anything but bytes is sent as JSON."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Answer([body], status, [("content-type", content_type)])


def _edited(step: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    is_event = step.startswith(b"data: {")
    if not is_event and not step.startswith(b"{"):
        return step
    value = msgspec.json.decode(step[6:] if is_event else step)
    change(value)
    return event(value) if is_event else msgspec.json.encode(value)

"""A chat's stream as the parts of its answer, one after the other: what the streams of other dialects are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from msgspec import Raw, Struct

from backends.api import Call
from gateway.dialects import chat

Kind = Literal["thought", "text", "refusal", "call"]


class Part(Struct):
    """One part of an answer, of which one is open at a time."""

    kind: Kind
    index: int = 0
    """Of a tool call: which of the answer's calls it is."""
    id: str = ""
    name: str = ""
    """The function that a tool call is for."""


class Parts(ABC):
    """Reads one stream, and has its parts written by what a dialect adds to it."""

    def __init__(self, call: Call, *, thoughts: bool = True) -> None:
        """`thoughts`: with what the model thinks."""
        self.call = call
        self._thoughts = thoughts
        self._begun = False
        self._open: Part | None = None
        self._calls: set[int] = set()
        self.reason = ""
        """Why the answer ended, in a chat's words; empty: it has not."""
        self.stop_reason = Raw()
        """vLLM: at which stop sequence it ended."""
        self.usage = Raw()
        self.refused = False
        self.piece: bytes | None = None
        """As `Writer.piece`."""
        self._added = 0
        """Pieces that the event at hand has added."""

    @abstractmethod
    def begin(self, event: chat.Answer) -> bytes:
        """What comes before all parts; `event` is the stream's first."""

    @abstractmethod
    def begin_part(self, part: Part) -> bytes:
        """A part begins, with nothing in it."""

    @abstractmethod
    def go_on(self, part: Part, inside: bytes, logprobs: Raw) -> bytes:
        """A piece of the open part: the inside of a string, and what is known of its tokens, undecoded."""

    @abstractmethod
    def end_part(self, part: Part) -> bytes:
        """The open part is whole."""

    @abstractmethod
    def finish(self, reason: str) -> bytes:
        """All parts are whole; why the answer ended, in a chat's words."""

    @property
    def called(self) -> bool:
        """Whether there are tool calls in it."""
        return bool(self._calls)

    def take(self, event: chat.Answer) -> bytes:
        """As `Writer.take`."""
        self.piece, self._added, part = None, 0, self._open
        said = [] if self._begun else [self.begin(event)]
        self._begun = True
        if event.usage and bytes(event.usage) != b"null":
            self.usage = Raw(bytes(event.usage))
        for choice in event.choices or ():
            if choice.delta is not None:
                self._say(choice.delta, choice.logprobs, said)
            if choice.finish_reason:
                self.reason, self.stop_reason = chat.ended(choice.finish_reason), Raw(bytes(choice.stop_reason))
                self._close(said)
        if self._added != 1 or self._open is not part:
            self.piece = None
        return b"".join(said)

    def say(self, inside: bytes) -> bytes:
        """As `Writer.say`."""
        assert self._open is not None
        return self.go_on(self._open, inside, Raw())

    def end(self) -> bytes:
        """As `Writer.end`; a server that never says why an answer ended has ended it well."""
        said = [] if self._begun else [self.begin(chat.Answer())]
        self._begun = True
        self._close(said)
        said.append(self.finish(self.reason or "stop"))
        return b"".join(said)

    def _say(self, delta: chat.Said, logprobs: Raw, said: list[bytes]) -> None:
        if self._thoughts and (thought := delta.thought):
            self._go_on(self._turn_to("thought", said), thought, Raw(), said)
        if text := chat.inside(delta.content):
            self._go_on(self._turn_to("text", said), text, logprobs, said)
        if refusal := chat.inside(delta.refusal):
            self.refused = True
            self._go_on(self._turn_to("refusal", said), refusal, Raw(), said)
        for position, piece in enumerate(delta.tool_calls or ()):
            self._call_tool(position if piece.index is None else piece.index, piece, said)

    def _go_on(self, part: Part, inside: bytes, logprobs: Raw, said: list[bytes]) -> None:
        said.append(self.go_on(part, inside, logprobs))
        self._added += 1
        self.piece = inside if bytes(logprobs) in (b"", b"null") else None

    def _turn_to(self, kind: Kind, said: list[bytes]) -> Part:
        """The open part, if it is of this kind; else a new one."""
        part = self._open
        return part if part is not None and part.kind == kind else self._begin_part(Part(kind), said)

    def _call_tool(self, index: int, piece: chat.ToolCall, said: list[bytes]) -> None:
        function, part = piece.function or chat.Function(), self._open
        if index not in self._calls:
            if not function.name:
                raise ValueError(f"tool call {index} begins without a name")
            self._calls.add(index)
            part = self._begin_part(
                Part("call", index, piece.id or f"call_{self.call.id}_{index}", function.name), said
            )
        if arguments := chat.inside(function.arguments):
            if part is None or part.kind != "call" or part.index != index:
                raise ValueError(f"tool call {index} goes on behind another part of the answer")
            self._go_on(part, arguments, Raw(), said)

    def _begin_part(self, part: Part, said: list[bytes]) -> Part:
        self._close(said)
        self._open = part
        said.append(self.begin_part(part))
        return part

    def _close(self, said: list[bytes]) -> None:
        part, self._open = self._open, None
        if part is not None:
            said.append(self.end_part(part))

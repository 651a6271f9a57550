"""What a client's dialect is: one pure function for each direction."""

from __future__ import annotations

from typing import Protocol

from backends.api import Call, Endpoint
from gateway.dialects.asking import Asking
from gateway.dialects.chat import Answer


class Writer(Protocol):
    """Writes one stream in the client's words. What it raises is as for `Dialect.answer`."""

    piece: bytes | None
    """The inside of the text that the last event added, where it did nothing else; else None."""

    def take(self, event: Answer) -> bytes:
        """What the client gets for one event of the server's; empty: nothing yet."""

    def say(self, inside: bytes) -> bytes:
        """What the client gets for one more event like the last, which had a `piece`, with this text in its place."""

    def end(self) -> bytes:
        """What the client gets at the end of the stream. Asked once, and only of one that ended well."""


class Dialect(Protocol):
    """A client's language, for servers that do not speak it."""

    asks: Endpoint
    """What the server is asked for in its place."""

    def request(self, call: Call) -> Asking:
        """The same question for the server; raises `RequestRefused` for what cannot be carried, by its name."""

    def answer(self, call: Call, body: bytes) -> bytes:
        """A whole answer in the client's words.

        Raises `UpstreamFault` for one that did not end well, `ValueError` for one that is not understood.
        """

    def open(self, call: Call) -> Writer:
        """What writes the stream that answers this call."""

    def refusal(self, call: Call, status: int, message: str, param: str | None) -> tuple[int, bytes]:
        """The status and the body with which the client is told that its call is at fault."""

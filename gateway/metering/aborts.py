"""How a client left: in which phase of its call, and how long it took to give back what the call held."""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Struct

Phase = Literal["body", "queue", "headers", "first_token", "stream", "whole"]
"""What we waited for when we learned that the client had left.

- body: the rest of its body, or the look at its key that comes before
- queue: admission, or a target that has room; also after an attempt that failed
- headers: for a stream, the headers of the target's answer
- first_token: for a stream, the first event with text; headers, comments and a role may have come
- stream: for a stream, what comes after the first token
- whole: for an answer that is no stream, all of it
"""


class Client(Protocol):
    """The caller's side of the exchange, as far as a record asks."""

    @property
    def gone_at(self) -> float | None:
        """When we learned that it had left, by the monotonic clock; None: it has not."""

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The request's headers, names in lower case."""

    @property
    def own_id(self) -> str:
        """What the client calls its request; empty: it does not say."""


class Abort(Struct, frozen=True):
    """A client's leaving before its answer was sent."""

    phase: Phase
    seconds: float
    """From learning of it until nothing was held for the call."""

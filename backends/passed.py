"""Answers of which nothing is known but where they end: of paths that an operator passes on, and of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backends import answers, sse
from backends.api import Adapter, Call, Chunk, Reply, StreamReader, Target, UpstreamRequest, Usage
from backends.endpoints import Endpoint
from backends.native import Native

NOTHING: Final = Usage()


class Opaque:
    """One stream: it ends with `[DONE]`, or where its HTTP message ends well."""

    whole_message = True
    """A stream whose connection breaks is broken, whatever it has said."""

    def __init__(self) -> None:
        self._begun = False

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        """Read one event. Raises `UpstreamFault` for one that tells of an error."""
        data = sse.data(event)
        if not data:
            return (Chunk(event, comment=True),)
        begun, self._begun = self._begun, True
        first = () if begun else (Chunk(b"", finished=1),)
        if data == b"[DONE]":
            return (*first, Chunk(event, done=True))
        usage = None
        if b'"error"' in data or b'"usage"' in data:
            try:
                usage = answers.answer_usage(data)
            except ValueError:
                usage = None
        return (*first, Chunk(event, 1, usage))

    def terminator(self) -> Chunk:
        """The message has ended."""
        return Chunk(b"", done=True)


class Passed(Native):
    """A path of the server's that the operator passes on, as it is."""

    def __init__(self) -> None:
        super().__init__("")

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        asked = super().request(call, target)
        return UpstreamRequest(call.path, asked.headers, asked.body if call.method == "POST" else b"", call.method)

    def reply(self, call: Call, body: bytes) -> Reply:
        """Usage is read where it stands as in OpenAI's answers."""
        try:
            return Reply(body, answers.answer_usage(body))
        except (ValueError, RecursionError):
            return Reply(body)

    def open(self, call: Call) -> StreamReader:
        return Opaque()


class Recordings(Native):
    """Audio in, text out: the form goes on as it came. It is counted as a request, for no server counts its tokens."""

    def reply(self, call: Call, body: bytes) -> Reply:
        return Reply(body, NOTHING)

    def open(self, call: Call) -> StreamReader:
        return Opaque()


def recordings(*endpoints: Endpoint) -> Mapping[Endpoint, Adapter]:
    """Who speaks for these endpoints for audio; without any named, for all of them."""
    every: tuple[Endpoint, ...] = ("audio/transcriptions", "audio/translations")
    return {each: Recordings(f"/v1/{each}") for each in endpoints or every}

"""A stream that goes on at another target: its first half is one's, its second half the other's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fuzz.checks.adapters import ANSWERS, TARGET, adapters
from fuzz.feeding import Harness, allow, short
from harness.captures import captures

from backends.api import Call, Chunk, RequestRefused, Resumable
from backends.body import Body
from backends.samples import OPENAI
from backends.sse import Splitter
from gateway.core.errors import BadReply
from gateway.upstream.continuation import Transcript

ASKED = {
    "chat/completions": b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":3}',
    "completions": b'{"model":"m","prompt":"x","stream":true,"min_tokens":2}',
}


def check(data: bytes) -> None:
    """Whatever the targets say, the client gets the first half as it is, and every later event whole."""
    splitter = Splitter()
    events = [*splitter.feed(data), *filter(None, [splitter.close()])]
    half = len(events) // 2
    for endpoint, asked in ASKED.items():
        call = Call("call-1", endpoint, "m", Body(asked), "application/json", True, True)  # type: ignore[arg-type]
        for adapter in adapters().values():
            if isinstance(adapter, Resumable):
                _resumed(adapter, call, events[:half], events[half:])


def _resumed(adapter: Any, call: Call, first: list[bytes], second: list[bytes]) -> None:
    transcript = Transcript(call)
    if transcript.obstacle():
        return
    for chunk in _chunks(adapter, call, first):
        assert transcript.take(chunk).data == chunk.data
    if transcript.obstacle():
        return
    rest = transcript.rest(adapter, started=True)
    allow(RequestRefused, adapter.request, rest, TARGET)
    for chunk in _chunks(adapter, rest, second):
        taken = allow(BadReply, transcript.take, chunk)
        if taken is None:
            return
        assert taken.data == b"" or taken.data.endswith((b"\n", b"\r"))


def _chunks(adapter: Any, call: Call, events: list[bytes]) -> Iterator[Chunk]:
    """What an adapter makes of the events, up to one that tells a fault or is not understood."""
    reader = adapter.open(call) if hasattr(adapter, "open") else adapter
    for event in events:
        made = allow(ANSWERS, reader.chunk, call, event)
        if made is None:
            return
        yield from made


_seen = [capture.body for capture in captures("*/*") if capture.streamed and not capture.cut and capture.status == 200]
HARNESS = Harness("resume", check, short([sample.answered for sample in OPENAI] + _seen))

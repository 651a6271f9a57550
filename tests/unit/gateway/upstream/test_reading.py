"""Events that came together become one chunk, and nothing is lost before a failure."""

from __future__ import annotations

import pytest

from backends.api import Call, Chunk, Usage
from backends.body import Body
from backends.openai import OpenAI
from gateway.core.errors import BadReply, UpstreamFailed
from gateway.upstream import Reading

CALL = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=True, include_usage=True)


def chunk(content: str, finish: str = "null") -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}\n\n' % (
        content.encode(),
        finish.encode(),
    )


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"died","code":500}}\n\n'


def test_events_that_came_together_become_one_chunk() -> None:
    events = [chunk("a"), b": ping\n\n", chunk("b", '"stop"'), USAGE, DONE]
    (found,) = Reading(CALL, OpenAI()).merged(events)
    assert found == Chunk(b"".join(events), tokens=2, usage=Usage(3, 2), finished=True, done=True, comment=False)


def test_comments_alone_stay_a_comment() -> None:
    (found,) = Reading(CALL, OpenAI()).merged([b": a\n\n", b":\n\n"])
    assert found.comment and found.data == b": a\n\n:\n\n"


def test_nothing_is_yielded_for_nothing() -> None:
    assert list(Reading(CALL, OpenAI()).merged([])) == []


def test_what_came_before_a_failure_is_yielded_before_it_is_raised() -> None:
    found = Reading(CALL, OpenAI()).merged([chunk("a"), ERROR, DONE])
    assert next(found).data == chunk("a")
    with pytest.raises(UpstreamFailed):
        next(found)


def test_what_comes_after_the_end_is_not_read() -> None:
    (found,) = Reading(CALL, OpenAI()).merged([chunk("a", '"stop"'), DONE, b"data: nonsense\n\n"])
    assert found.done and found.data.endswith(DONE)


@pytest.mark.parametrize("event", [b"data: nonsense\n\n", b"data: [1]\n\n", b"data: {" + b'"a":[' * 50_000 + b"\n\n"])
def test_an_event_that_is_not_understood_is_a_bad_reply(event: bytes) -> None:
    with pytest.raises(BadReply):
        list(Reading(CALL, OpenAI()).merged([event]))
